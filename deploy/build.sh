#!/bin/sh
# build.sh [server|device|gpu]...: the images of docker-compose.yml, by default server and device.
# What .env says can be changed in the environment. Optional, and never in the image:
#   HFFM_BUILD_CA    certificates that pip is to trust
#   HFFM_BUILD_PIP   a pip.conf
#   HFFM_BUILD_FLAGS more words for docker build, e.g. --network=host
set -eu
cd "$(dirname "$0")/.."

knob() { # NAME: its value, from the environment or from .env
    eval "printf '%s' \"\${$1-$(sed -n "s/^$1=//p" .env)}\""
}

build() { # DOCKERFILE IMAGE [OPTION]...
    file=$1 image=$2
    shift 2
    [ -z "${HFFM_BUILD_CA-}" ] || set -- "$@" --secret "id=ca,src=$HFFM_BUILD_CA"
    [ -z "${HFFM_BUILD_PIP-}" ] || set -- "$@" --secret "id=pip,src=$HFFM_BUILD_PIP"
    # shellcheck disable=SC2086 # words
    DOCKER_BUILDKIT=1 docker build ${HFFM_BUILD_FLAGS-} "$@" --file "deploy/Dockerfile.$file" \
        --build-arg "BASE=$(knob HFFM_BASE_IMAGE)" --tag "$image" .
}

[ $# -gt 0 ] || set -- server device
for what in "$@"; do
    case $what in
        server) build server "$(knob HFFM_SERVER_IMAGE)" ;;
        device) build device "$(knob HFFM_DEVICE_IMAGE)" ;;
        gpu) build device "$(knob HFFM_GPU_IMAGE)" --build-arg WHEELS= ;;
        *) echo "build.sh: there is no image '$what'; allowed: server, device, gpu" >&2; exit 2 ;;
    esac
done
