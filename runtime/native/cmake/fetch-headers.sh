#!/bin/sh
# Fetches the headers of ONNX Runtime and nlohmann-json into a folder, without installing anything: Debian 13's packages,
# by apt, from the mirror that this machine is configured for, with only the suite's name replaced.
#   fetch-headers.sh DIR        afterwards: cmake -DCMAKE_PREFIX_PATH=DIR/usr
set -eu
out=$1
suite=trixie
packages="libonnxruntime-dev nlohmann-json3-dev"
command -v apt-get >/dev/null || { echo "there is no apt-get" >&2; exit 3; }
command -v dpkg-deb >/dev/null || { echo "there is no dpkg-deb" >&2; exit 3; }
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ "${ID:-$(. /etc/os-release && echo "$ID")}" = debian ] || { echo "this is no Debian" >&2; exit 3; }
mkdir -p "$out/apt/lists/partial" "$out/apt/cache/archives/partial" "$out/apt/debs"
# one line for each mirror of this machine's own suite, in either of apt's formats
{
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | awk -v own="$codename" -v new="$suite" '
    $1 == "deb" { for (i = 2; i <= NF; i++) if ($i == own) { $i = new; print; next } }' || true
  cat /dev/null /etc/apt/sources.list.d/*.sources 2>/dev/null | awk -v own="$codename" -v new="$suite" '
    function done_() { if (fits && uri != "") print "deb " (key != "" ? "[signed-by=" key "] " : "") uri " " new " main"; uri = key = ""; fits = 0 }
    /^[[:space:]]*$/ { done_() }
    tolower($1) == "uris:" { uri = $2 }
    tolower($1) == "signed-by:" { key = $2 }
    tolower($1) == "suites:" { for (i = 2; i <= NF; i++) if ($i == own) fits = 1 }
    END { done_() }' || true
} | head -n 1 > "$out/apt/sources.list"
[ -s "$out/apt/sources.list" ] || { echo "apt has no mirror of $codename" >&2; exit 3; }
own() {
  apt-get -qq -o Dir::Etc::SourceList="$out/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$out/apt/lists" -o Dir::Cache="$out/apt/cache" -o Acquire::Languages=none \
    -o Acquire::Retries=2 -o APT::Sandbox::User="$(id -un)" "$@"
}
out=$(cd "$out" && pwd)
own update
(cd "$out/apt/debs" && own download $packages)
for package in "$out"/apt/debs/*.deb; do dpkg-deb -x "$package" "$out"; done
rm -rf "$out/apt"
