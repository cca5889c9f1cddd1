#!/usr/lib/livemount/busybox sh
# Asks for the live-mount host's "up" address until it answers.
tries=0
until wget -q -T 10 -O /dev/null "$(cat /usr/lib/livemount/up.url)"; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || exit 1
    sleep 2
done
