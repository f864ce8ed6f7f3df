#!/bin/sh
# make-base.sh [TAG [MIRROR]]: the images' base without a container registry, from Debian's packages.
# A stand-in for the official image of that name: minimal Debian and its own CPython 3.11.
# As root; needs debootstrap and docker, nothing else. TAG is what a Dockerfile's FROM names.
set -eu

tag=${1:-python:3.11-slim-bookworm}
mirror=${2:-http://deb.debian.org/debian}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT TERM

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" "$mirror"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* \
    "$root"/usr/share/doc/* "$root"/usr/share/info/* "$root"/usr/share/locale/* "$root"/usr/share/man/*
tar -C "$root" --numeric-owner --one-file-system -c . | docker import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'CMD ["python3"]' - "$tag"
