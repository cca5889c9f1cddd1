#!/usr/lib/livemount/busybox sh
# Tells the guest's network services about the interface its root disk is reached by: keep its address, always.
for entry in /sys/firmware/ibft/ethernet*; do
    mac=$(cat "$entry/mac") || continue
    dns=$(cat "$entry/primary-dns" 2>/dev/null)
    [ "$dns" != 0.0.0.0 ] || dns=
    mkdir -p /run/systemd/network
    cat >/run/systemd/network/00-livemount.network <<END
[Match]
MACAddress=$mac

[Link]
RequiredForOnline=no

[Network]
DHCP=ipv4
KeepConfiguration=yes
${dns:+DNS=$dns}

[DHCPv4]
ClientIdentifier=mac
END
    # A guest whose settings are for an interface of another name gets its names resolved nevertheless; a link is
    # some service's own.
    if [ -n "$dns" ] && [ ! -L /etc/resolv.conf ]; then
        echo "nameserver $dns" >/etc/resolv.conf
    fi
done
