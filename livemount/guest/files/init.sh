#!/livemount/root/busybox sh
# The first program of an initrd prepared for a live mount: brings up the interface that the iSCSI boot firmware table
# (iBFT) names, logs in to the target it names, and then is the guest's own init. Without such a table it is that at once.
bb=/livemount/root/busybox

say() {
    echo "livemount: $*" >/dev/kmsg 2>/dev/null || echo "livemount: $*"
}

$bb mkdir -p /proc /sys /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev

load_modules() {
    # A driver whose hardware is not there may refuse to load.
    while read -r module; do
        insmod "/livemount/modules/$module" 2>/dev/null
    done </livemount/modules/order
}

# The interface whose MAC is $1, once its driver has made it.
find_interface() {
    tries=0
    while [ $tries -lt 300 ]; do
        for device in /sys/class/net/*; do
            if [ -e "$device/device" ] && [ "$(cat "$device/address")" = "$1" ]; then
                basename "$device"
                return 0
            fi
        done
        tries=$((tries + 1))
        usleep 100000
    done
    return 1
}

configure_interface() {
    entry=$1
    mac=$(cat "$entry/mac") || return 1
    interface=$(find_interface "$mac") || {
        say "no interface has the MAC $mac"
        return 1
    }
    address=$(cat "$entry/ip-addr")
    mask=$(cat "$entry/subnet-mask")
    gateway=$(cat "$entry/gateway" 2>/dev/null)
    eval "$(ipcalc -p "$address" "$mask")"
    ip link set dev lo up
    ip link set dev "$interface" up
    ip addr add "$address/$PREFIX" broadcast + dev "$interface"
    case "$gateway" in
        "" | 0.0.0.0) ;;
        *) ip route add default via "$gateway" dev "$interface" ;;
    esac
    tries=0
    while [ $tries -lt 100 ] && [ "$(cat "/sys/class/net/$interface/carrier" 2>/dev/null)" != 1 ]; do
        tries=$((tries + 1))
        usleep 100000
    done
    say "$interface ($mac) has $address/$PREFIX"
}

start() {
    load_modules
    [ -d /sys/firmware/ibft ] || {
        say "the firmware names no iSCSI target"
        return 0
    }
    for entry in /sys/firmware/ibft/ethernet*; do
        configure_interface "$entry"
    done
    # A mount namespace of its own: the daemon in it must not lie on the file system that it serves.
    unshare -m $bb sh /livemount/login
}

start
umount /dev /sys /proc
exec /livemount/init.original "$@"
