#!/usr/bin/env bash
# generate.sh: makes the Go code and the OpenAPI document of proto/assay again.
# generate.sh --check: changes nothing, and fails if they are not current, or if
# buf has something to say about the sources.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${ASSAY_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/assay/tools}
buf=$tools/buf
if [ ! -x "$buf" ]; then
	echo "generate.sh: buf is not built: run 'make tools'" >&2
	exit 1
fi

# The sources import google/api/annotations.proto. The npm package has it; what
# came is held against these digests, whatever answered to the name.
package=google-proto-files@6.0.1
sums='e79ea741cb605a65e78ca322174764a4af9fde1962c1631e12b84c4934ba9a6c  annotations.proto
ead99129aa15dd5f6233942030c72eec33bc0d7b1c7c260dc143293ef66c5b78  http.proto'
api=proto/.deps/google/api

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! (cd "$api" && sha256sum --check --status <<<"$sums") 2>/dev/null; then
	(cd "$work" && npm pack --silent "$package" >/dev/null && tar xzf google-proto-files-*.tgz)
	mkdir -p "$api"
	cp "$work"/package/google/api/{annotations,http}.proto "$api"
	if ! (cd "$api" && sha256sum --check --quiet <<<"$sums"); then
		echo "generate.sh: $package does not hold what it is known to hold" >&2
		exit 1
	fi
fi

# generated ACTION: what find does with each generated file.
generated() {
	find ./proto -type f \( -name '*.pb.go' -o -name '*.pb.gw.go' -o -name '*.swagger.json' \) "$@"
}

"$buf" lint

if [ "${1:-}" != --check ]; then
	"$buf" format --write --path proto/assay
	generated -delete
	"$buf" generate
	exit
fi

fail=0
"$buf" format --diff --exit-code --path proto/assay || fail=1
"$buf" generate --output "$work/now"
# What was generated and what is here must be the same files with the same bytes.
(cd "$work/now" && find . -type f | sort) >"$work/want"
generated -print | sort >"$work/have"
diff "$work/have" "$work/want" || fail=1
while read -r file; do
	cmp "$file" "$work/now/$file" || fail=1
done < <(comm -12 "$work/have" "$work/want")
if [ $fail != 0 ]; then
	echo "generate.sh: generated code is not current: run 'make generate' and commit what it changes" >&2
fi
exit $fail
