#!/bin/sh
# Keeps the iSCSI root of a live mount when an initrd is made anew: wraps its /init as guest preparation did.
if [ "$1" = prereqs ]; then
    exit 0
fi
set -e
home=/usr/lib/livemount
inside="$DESTDIR/livemount"
[ -e "$DESTDIR/init" ] || exit 0

(cd "$DESTDIR" && gzip -dc "$home/base.cpio.gz" | cpio --quiet --extract --make-directories --unconditional)
mkdir -p "$inside/modules"
: >"$inside/modules/order"
while read -r module; do
    modprobe --set-version "$version" --ignore-install --quiet --show-depends "$module" | while read -r kind path _; do
        [ "$kind" = insmod ] || continue
        name=$(basename "$path")
        name=${name%%.*}.ko
        ! grep -qxF "$name" "$inside/modules/order" || continue
        case "$path" in
            *.xz) xz -dc "$path" >"$inside/modules/$name" ;;
            *.zst) zstd -dcq "$path" >"$inside/modules/$name" ;;
            *.gz) gzip -dc "$path" >"$inside/modules/$name" ;;
            *) cp "$path" "$inside/modules/$name" ;;
        esac
        echo "$name" >>"$inside/modules/order"
    done
done <"$home/modules"
cp "$home/login" "$inside/login"
mv "$DESTDIR/init" "$inside/init.original"
cp "$home/init" "$DESTDIR/init"
chmod 755 "$DESTDIR/init"
