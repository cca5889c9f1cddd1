# Runs in a mount namespace of its own: logs in to the iBFT's target and leaves the iSCSI daemon running from a tmpfs.
bb=/livemount/root/busybox
root=/livemount/mnt

say() {
    echo "livemount: $*" >/dev/kmsg
}

mkdir -p $root
mount -t tmpfs -o mode=0755,size=64m tmpfs $root
cp -a /livemount/root/. $root/
mkdir -p $root/proc $root/sys $root/dev $root/run/lock/iscsi $root/var $root/etc/iscsi/nodes $root/etc/iscsi/send_targets
ln -s /run $root/var/run
ln -s /run/lock $root/var/lock
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mknod $root/dev/null c 1 3
mknod $root/dev/kmsg c 1 11
echo "InitiatorName=$(cat /sys/firmware/ibft/initiator/initiator-name)" >$root/etc/iscsi/initiatorname.iscsi

tries=0
until chroot $root /sbin/iscsistart -b >$root/run/iscsistart.log 2>&1; do
    tries=$((tries + 1))
    say "login failed: $(tail -n 1 $root/run/iscsistart.log)"
    [ $tries -lt 20 ] || exit 1
    sleep 3
done

# I/O waits for ever: a root disk that fails once is lost until the next boot.
for session in /sys/class/iscsi_session/session*; do
    echo off >"$session/recovery_tmo"
    say "logged in to $(cat "$session/targetname")"
done

# systemd spares a process of the initrd at shutdown when its name begins with @ (systemd.io/ROOT_STORAGE_DAEMONS).
setsid $bb chroot $root /busybox sh -c \
    'exec -a @iscsid /sbin/iscsid -f -c /etc/iscsi/iscsid.conf -i /etc/iscsi/initiatorname.iscsi' \
    </dev/null >$root/dev/kmsg 2>&1 &

tries=0
until ls -d /sys/class/iscsi_session/session*/device/target*/*/block/* >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || {
        say "the target has no disk"
        exit 1
    }
    usleep 100000
done
