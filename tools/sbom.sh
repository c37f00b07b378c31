#!/bin/sh
# sbom.sh CMAKELISTS ["NAME VERSION SUPPLIER"...]: the bill of materials of the machine that it runs
# on, as SPDX 2.3 in JSON: tranche with the version of CMAKELISTS, each package that dpkg has
# installed, and what is named besides. Needs dpkg and awk alone, which every Debian image has.
set -eu
version=$(sed -n 's/^project(.*VERSION \([0-9.]*\).*/\1/p' "$1")
[ -n "$version" ] || { echo "sbom: $1: want project(... VERSION N), found none" >&2; exit 65; }
shift
list=$(dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\n' |
    sed -n 's/^ii \t//p')
for more in "$@"; do
    # shellcheck disable=SC2086 # three words
    set -- $more
    list="$list
$(printf '%s\t%s\t\t\t%s' "$1" "$2" "$3")"
done
. /etc/os-release
sum=$(echo "$version $list" | sha256sum | cut -c 1-16)
created=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%dT%H:%M:%SZ)
echo "$list" | awk -F '\t' -v version="$version" -v sum="$sum" -v created="$created" -v os="$ID" '
function quoted(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
function escaped(s) { gsub(/%/, "%25", s); gsub(/:/, "%3A", s); gsub(/\+/, "%2B", s); gsub(/~/, "~", s); return s }
function put(id, name, v, supplier, purl) {
    printf "%s    {\"SPDXID\": %s, \"name\": %s, \"versionInfo\": %s, \"supplier\": %s,\n", n++ ? ",\n" : "",
        quoted(id), quoted(name), quoted(v), quoted(supplier)
    printf "     \"downloadLocation\": \"NOASSERTION\", \"filesAnalyzed\": false, \"licenseConcluded\": \"NOASSERTION\",\n"
    printf "     \"licenseDeclared\": \"NOASSERTION\", \"copyrightText\": \"NOASSERTION\""
    if (purl)
        printf ",\n     \"externalRefs\": [{\"referenceCategory\": \"PACKAGE-MANAGER\", \"referenceType\": \"purl\", " \
            "\"referenceLocator\": %s}]", quoted(purl)
    printf "}"
    ids[n] = id
}
BEGIN {
    printf "{\n  \"spdxVersion\": \"SPDX-2.3\", \"dataLicense\": \"CC0-1.0\", \"SPDXID\": \"SPDXRef-DOCUMENT\",\n"
    printf "  \"name\": \"tranche-%s\", \"documentNamespace\": \"https://spdx.org/spdxdocs/tranche-%s-%s\",\n",
        version, version, sum
    printf "  \"creationInfo\": {\"created\": \"%s\", \"creators\": [\"Tool: tranche-sbom.sh\"]},\n  \"packages\": [\n", created
    put("SPDXRef-tranche", "tranche", version, "NOASSERTION", "")
}
{
    id = $1 ($3 ? "-" $3 : "")
    gsub(/[^A-Za-z0-9.-]/, "-", id)
    if ($3)
        put("SPDXRef-" id, $1, $2, "Organization: Debian",
            "pkg:deb/" os "/" escaped($1) "@" escaped($2) "?arch=" $3 "&upstream=" escaped($4))
    else
        put("SPDXRef-" id, $1, $2, "Organization: " $5, "pkg:pypi/" $1 "@" $2)
}
END {
    printf "\n  ],\n  \"relationships\": [\n"
    printf "    {\"spdxElementId\": \"SPDXRef-DOCUMENT\", \"relationshipType\": \"DESCRIBES\", \"relatedSpdxElement\": \"%s\"}",
        ids[1]
    for (i = 2; i <= n; i++)
        printf ",\n    {\"spdxElementId\": \"%s\", \"relationshipType\": \"DEPENDS_ON\", \"relatedSpdxElement\": \"%s\"}",
            ids[1], ids[i]
    printf "\n  ]\n}\n"
}'
