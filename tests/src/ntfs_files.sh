# Files of NTFS of every shape, made in the folder that this runs in, through ntfs-3g.
set -e
attribute() { setfattr --name "system.ntfs_$1" --value "$2" "$3"; }
bytes() { head --bytes "$1" /dev/urandom; }

# What is in the record, in one extent, and in several: where there is room between others only.
mkdir shapes
cd shapes
: > empty
for size in 1 100 500 700 4095 4096 4097 70000; do bytes $size > "of $size bytes"; done
for piece in $(seq 60); do bytes 8192 > "piece $piece"; done
dd status=none if=/dev/zero of=filler bs=64K 2> /dev/null || true
for piece in $(seq 2 2 60); do rm "piece $piece"; done
bytes 200000 > fragmented
rm filler
bytes 5000 > shortened
truncate --size 1234 shortened
bytes 3000 > grown
truncate --size 300000 grown
truncate --size 1000000 hole
bytes 10000 | dd status=none conv=notrunc oflag=seek_bytes seek=500000 of=hole
truncate --size 2000000 'nothing but a hole'
mkdir compressed
attribute attrib_be 0x00000810 compressed
yes 'the same line' | head --bytes 300000 > compressed/text
bytes 200000 > compressed/noise
: > compressed/empty
cd ..

# Names.
mkdir names names/other
cd names
echo one > here
ln here there
ln here other/everywhere
echo long > 'A long name of a file.text'
attribute dos_name ALONGN~1.TEX 'A long name of a file.text'
echo both > 'Another long name.text'
attribute dos_name ANOTHE~1.TEX 'Another long name.text'
ln 'Another long name.text' other/linked
for name in 'Grüße aus Köln' '宇宙の空洞' '🐏 and 𐐷' 'Ωμέγα' 'SAME' 'same' trailing.; do
    echo "$name" > "$name"
done
echo many > 'one of many'
for number in $(seq 60); do ln 'one of many' "other/the name of a file with very many names, number $number"; done
cd ..

# Attributes, streams and extended attributes.
mkdir attributes
cd attributes
for kind in read-only:0x00000001 hidden:0x00000002 system:0x00000004 all:0x00000007; do
    echo "$kind" > "${kind%:*}"
    attribute attrib_be "${kind#*:}" "${kind%:*}"
done
echo streams > streams
echo note > streams:note
bytes 100000 > streams:large
for id in 1 2; do
    echo "$id" > "identified $id"
    attribute object_id 0x0${id}0102030405060708090a0b0c0d0e0f "identified $id"
done
# One with the name user.one and the value 1234, and two.
one=18000000000804
one=${one}00757365722e6f6e650031323334000000
echo extended > extended
attribute ea 0x$one extended
echo twice > 'extended twice'
attribute ea "0x${one}1000000000060100757365722e780039" 'extended twice'
cd ..

# Times.
mkdir times
cd times
for year in 1602 1903 1969 1970 2037 2039 2107 2200; do
    echo $year > $year
    touch --no-create --date "$year-01-01 00:00:01.123456789 UTC" $year
done
cd ..

# Links.
mkdir links
ln --symbolic ../names/here links/symbolic
ln --symbolic /no/where links/dangling
mkdir links/junction links/folder
: > links/file

# Records that were another file's before.
mkdir many
for number in $(seq 2000); do echo $number > "many/file $number"; done
for number in $(seq 3 3 2000); do rm "many/file $number"; done
for number in $(seq 500); do echo "new $number" > "many/new $number"; done
