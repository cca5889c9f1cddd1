#!/usr/lib/livemount/busybox sh
# Asks for the live-mount host's "up" address until it answers.
tries=0
# Debian 12's busybox crashes in `wget -T`, so `timeout` it is.
until timeout 15 wget -q -O /dev/null "$(cat /usr/lib/livemount/up.url)"; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || exit 1
    sleep 2
done
