#!/bin/sh
# private: tracked files name no path of somebody's machine, no package registry and no secret.
set -u
cd "$(dirname "$0")/../.."
bad=0
deny() {
    # Text files only (-I); this file spells the patterns and is left out.
    if git grep -nIE -e "$1" -- . ':!tests/lint/private.sh' ':!*.golden' ':!tests/golden' \
        ':!tests/fuzz/corpus'; then
        echo "private: $2" >&2
        bad=1
    fi
}
deny '(^|[^A-Za-z0-9_.$}/])/(home|root|work|Users|mnt/[a-z])/[A-Za-z0-9_.]' "an absolute path of a machine"
deny '(registry|packages?|artifactory|pypi|npm|proxy)\.[a-z0-9-]+\.(internal|corp|local|net|org|com)' \
    "a package registry's host"
deny 'index-url|extra-index' "a package registry's address"
deny '-----BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30}|hf_[A-Za-z0-9]{30}|sk-[A-Za-z0-9]{40}' \
    "what looks like a secret"
deny '\b(FIXME|TODO|XXX)\b' "work left undone"
exit $bad
