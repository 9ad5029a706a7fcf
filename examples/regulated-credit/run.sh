#!/usr/bin/env bash
# A credit scorer in three runtimes and over two protocols: do they decide
# alike, at a margin of 1 % of decisions? And are those found that do not: one
# with weights of int8, one that sends a tenth of the applicants to another
# version, one whose threshold lies elsewhere?
#
# Exits 0 only if every environment came out as it must.
#
#   OFF=int8|canary|threshold   leave this defect out; the script must fail then
#   WORK_DIR                    where to work (default: a temporary folder, removed at the end)
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
ASSAY=$ROOT/bin/assay
GOMLX=$ROOT/bin/gomlx-oip
MODELS=$ROOT/examples/models/credit
NODE=$ROOT/examples/environments
OFF=${OFF:-}

DIR=${WORK_DIR:-$(mktemp -d)}
mkdir -p "$DIR"
pids=()
cleanup() {
	status=$?
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
	for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
	if [ -z "${WORK_DIR:-}" ]; then rm -rf "$DIR"; fi
	if [ $status != 0 ]; then printf '\nregulated-credit FAILED (status %s).\n' "$status" >&2; fi
}
trap cleanup EXIT
step() { printf '\n%s\n' "$*"; }
fail() { printf 'regulated-credit: %s\n' "$*" >&2; exit 1; }
field() { sed -nE 's/^ *"'"$1"'": "([^"]*)",?$/\1/p' | head -1; }
wait_for() {
	for _ in $(seq 300); do
		[ -s "$1" ] && return
		sleep 0.1
	done
	fail "$1 was not written in 30 s; see $DIR/*.log"
}
case $OFF in "" | int8 | canary | threshold) ;; *) fail "OFF=$OFF is none of int8, canary, threshold" ;; esac
[ -x "$ASSAY" ] && [ -x "$GOMLX" ] || fail "run 'make build' first"
for m in ort-native/node_modules/onnxruntime-node ort-web/node_modules/onnxruntime-web; do
	[ -d "$NODE/$m" ] || fail "examples/environments/${m%%/*} is not installed: run 'make deps'"
done
unset CI ASSAY_SERVER

gomlx() { # NAME MODEL FLAGS...: a Go server that says it serves version 1.4.0
	local name=$1 model=$2
	shift 2
	"$GOMLX" --model "$MODELS/$model" --name credit --version 1.4.0 --threads 1 --grpc-addr 127.0.0.1:0 --grpc-port-file "$DIR/$name.grpc" \
		--port-file "$DIR/$name.port" "$@" >"$DIR/$name.log" 2>&1 &
	pids+=($!)
	wait_for "$DIR/$name.port"
}
node_server() { # NAME FOLDER
	node "$NODE/$2/server.mjs" --model "$MODELS/1.4.0" --name credit --version 1.4.0 --port-file "$DIR/$1.port" >"$DIR/$1.log" 2>&1 &
	pids+=($!)
	wait_for "$DIR/$1.port"
}

step "1. The scorer, released and signed, and a golden suite from its reference"
"$ASSAY" serve --addr 127.0.0.1:0 --grpc-addr 127.0.0.1:0 --data "$DIR/data" --reserve 67108864 --ready-file "$DIR/server.json" >"$DIR/server.log" 2>&1 &
pids+=($!)
wait_for "$DIR/server.json"
ASSAY_SERVER=$(sed -E 's/.*"http":"([^"]*)".*/\1/' "$DIR/server.json")
export ASSAY_SERVER COSIGN_PASSWORD=${COSIGN_PASSWORD-}
cd "$DIR"
"$ASSAY" keys generate --role release,conformance --out keys >/dev/null
"$ASSAY" trust new release=keys/release.pub conformance=keys/conformance.pub >trust.yaml
"$ASSAY" trust apply trust.yaml >/dev/null
(cd "$MODELS/1.4.0" && "$ASSAY" push -q credit/scorer:1.4.0 model.onnx preprocess.json)
"$ASSAY" sign --key keys/release.key credit/scorer:1.4.0 >/dev/null
gomlx reference 1.4.0
"$ASSAY" suite record credit/suite:1 --model credit/scorer:1.4.0 --url "http://$(cat reference.port)" --name credit --version 1.4.0 \
	--cases "$MODELS/cases.jsonl" --labels decline,approve --threshold 0.5 --classification synthetic --margin 0.01

step "2. Six environments that say they serve version 1.4.0"
gomlx core 1.4.0
node_server branch ort-native
node_server browser ort-web
if [ "$OFF" = int8 ]; then gomlx phone 1.4.0; else gomlx phone 1.4.0 --int8; fi
if [ "$OFF" = canary ]; then gomlx rollout 1.4.0; else gomlx rollout 1.4.0 --canary "$MODELS/1.3.0" --canary-share 0.1; fi
# The decision is made of the score: a threshold that lies 0.04 lower approves
# whom a score that lies 0.04 higher does.
if [ "$OFF" = threshold ]; then gomlx partner 1.4.0; else gomlx partner 1.4.0 --shift-score 0.04; fi

declare -A verdict
rows=()
measure() { # NAME WHAT PROTOCOL URL
	local status=0
	"$ASSAY" env register "$1" --protocol "$3" --url "$4" --model credit --version 1.4.0 --local >/dev/null
	"$ASSAY" replay credit/scorer:1.4.0 --suite credit/suite:1 --env "$1" --report "$1.html" -o json >"$1.replay.json" || status=$?
	case $status in 0 | 3 | 4) ;; *) fail "the replay of $1 failed" ;; esac
	status=0
	"$ASSAY" certify --key keys/conformance.key "$(field replay <"$1.replay.json")" -o json >"$1.certify.json" || status=$?
	case $status in 0 | 3 | 4) ;; *) fail "certifying $1 failed" ;; esac
	verdict[$1]=$(field verdict <"$1.certify.json")
	rows+=("$(printf '%-9s %-34s %-13s %s' "$1" "$2" "${verdict[$1]}" "$(field difference <"$1.certify.json")")")
}
measure core "pure Go, gRPC" oip-v2-grpc "grpc://$(cat core.grpc)"
measure branch "ONNX Runtime, native" oip-v2-rest "http://$(cat branch.port)"
measure browser "ONNX Runtime, WebAssembly" oip-v2-rest "http://$(cat browser.port)"
measure phone "pure Go, int8 weights" oip-v2-rest-binary "http://$(cat phone.port)"
measure rollout "pure Go, canary of 10 %" oip-v2-rest "http://$(cat rollout.port)"
measure partner "pure Go, threshold shifted by 0.04" oip-v2-grpc "grpc://$(cat partner.grpc)"

printf '\n%-9s %-34s %-13s %s\n' WHERE WHAT VERDICT DIFFERENCE
printf '%s\n' "${rows[@]}"
printf '\n  %s\n' "$(field claim <core.certify.json)"
for env in core branch browser; do
	[ "${verdict[$env]}" = CERTIFIED ] || fail "$env behaves as the reference and was ${verdict[$env]}"
done
grep -q 'the same to the bit' browser.certify.json && fail "browser is to be another runtime, and has the same bits"
for env in phone rollout partner; do
	[ "${verdict[$env]}" = REJECTED ] || fail "$env does not behave as the reference, and was ${verdict[$env]}"
done
grep -q 'decisions flip, all of them to approve' partner.certify.json || fail "the refusal of partner does not say which way its decisions flip"

step "3. Three runtimes are certified, and each defect is found."
