#!/bin/sh
# Give each machine its certificates, and the public keys of the nodes below it: into its own
# volume, mounted here at /machines/NAME. The authority's key stays in the volume /authority.
set -eu

pki=/authority/pki
hffm certs show "$pki" > /dev/null 2>&1 || hffm certs make "$pki" --force --days "$HFFM_CERTIFICATE_DAYS" \
    --server cloud --edge edge-0 --edge edge-1 --edge edge-2 --devices 6

hand_out() { # MACHINE [NODE BELOW IT]...
    machine=$1
    shift
    for file in "$pki/$machine"/*; do
        install -D -p -m "$(stat -c %a "$file")" "$file" "/machines/$machine/certificates/${file##*/}"
    done
    for node in "$@"; do
        install -D -p -m 0644 "$pki/$node/supernode.pub" "/machines/$machine/nodes/$node.pub"
    done
}

hand_out cloud edge-0 edge-1 edge-2
hand_out edge-0 device-0 device-1
hand_out edge-1 device-2 device-3
hand_out edge-2 device-4 device-5
for device in 0 1 2 3 4 5; do
    hand_out "device-$device"
done
