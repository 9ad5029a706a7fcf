#!/usr/bin/env bash
# The main job of Assay, from end to end, on real models: push, sign, trace,
# replay, certify, gate, and prove it offline. Exits 0 only if every step came
# out as it must.
#
#   KEEP=1      leave the server and the environments up, and say what to try
#   BAD=off     do not break the third environment; the demo must fail then
#   DEMO_DIR    where to work (default: a temporary folder, removed at the end)
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
ASSAY=$ROOT/bin/assay
GOMLX=$ROOT/bin/gomlx-oip
MODELS=$ROOT/examples/models
KEEP=${KEEP:-}
BAD=${BAD:-on}

DIR=${DEMO_DIR:-$(mktemp -d)}
mkdir -p "$DIR"
pids=()
cleanup() {
	status=$?
	if [ -n "$KEEP" ] && [ $status = 0 ]; then return; fi
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
	for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
	if [ -z "${DEMO_DIR:-}" ]; then rm -rf "$DIR"; fi
	if [ $status != 0 ]; then printf '\nThe demo FAILED (status %s).\n' "$status" >&2; fi
}
trap cleanup EXIT

bold="" plain=""
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# show runs a command of assay as a user would type it, and prints both.
show() {
	printf '\n$ assay %s\n' "$*"
	"$ASSAY" "$@"
}

# expect STATUS COMMAND... runs a command that must end with that status.
expect() {
	local want=$1 got=0
	shift
	"$@" || got=$?
	[ $got = "$want" ] || fail "'$*' ended with status $got, $want was expected"
}

# field NAME reads a top-level text field of the JSON on standard input.
field() { sed -nE 's/^  "'"$1"'": "([^"]*)",?$/\1/p' | head -1; }

wait_for() {
	for _ in $(seq 300); do
		[ -s "$1" ] && return
		sleep 0.1
	done
	fail "$1 was not written in 30 s; see $DIR/*.log"
}

# environment NAME MODEL-FOLDER [FLAGS...] starts an environment that serves
# the credit model and claims to serve version 1.4.0.
environment() {
	local name=$1 model=$2
	shift 2
	"$GOMLX" --model "$MODELS/credit/$model" --name credit --version 1.4.0 --port-file "$DIR/$name.port" "$@" >"$DIR/$name.log" 2>&1 &
	pids+=($!)
	wait_for "$DIR/$name.port"
}

[ -x "$ASSAY" ] && [ -x "$GOMLX" ] || fail "run 'make demo', which builds bin/assay and bin/gomlx-oip first"
unset CI ASSAY_SERVER
export COSIGN_PASSWORD=${COSIGN_PASSWORD-}

step "1. A registry: one program, one folder"
"$ASSAY" serve --addr 127.0.0.1:0 --grpc-addr 127.0.0.1:0 --data "$DIR/data" --reserve 67108864 --ready-file "$DIR/server.json" >"$DIR/server.log" 2>&1 &
pids+=($!)
wait_for "$DIR/server.json"
ASSAY_SERVER=$(sed -E 's/.*"http":"([^"]*)".*/\1/' "$DIR/server.json")
export ASSAY_SERVER
say "serving $ASSAY_SERVER, data in $DIR/data (Badger and files)"
cd "$DIR"

step "2. Who may say what: one key for one role, and a trust file"
show keys generate --role release,provenance,conformance,deployment,withdrawal --out keys
"$ASSAY" trust new release=keys/release.pub provenance=keys/provenance.pub conformance=keys/conformance.pub \
	deployment=keys/deployment.pub withdrawal=keys/withdrawal.pub >trust.yaml
show trust apply trust.yaml
show log checkpoint --key >log.vkey.txt
tail -n 1 log.vkey.txt >log.vkey

step "3. Two trained models, each with an older version as its parent"
push_model() { # REPOSITORY VERSION FOLDER FLAGS...
	local repo=$1 version=$2 folder=$3
	shift 3
	(cd "$MODELS/$folder/$version" && show push -q "$@" "$repo:$version" model.onnx preprocess.json)
}
say "credit/scorer, exactly as 'oras push' writes it"
push_model credit/scorer 1.3.0 credit
push_model credit/scorer 1.4.0 credit
say ""
say "digits/classifier, as a CNCF ModelPack"
push_model digits/classifier 1.0.0 digits --format modelpack --family mlp
push_model digits/classifier 1.1.0 digits --format modelpack --family mlp
show versions credit/scorer
printf '\n  A release is written once:\n'
(cd "$MODELS/credit/1.3.0" && expect 1 "$ASSAY" push -q credit/scorer:1.4.0 model.onnx)

step "4. Released, and traced to data, code and parent: signed"
for m in credit/scorer:1.3.0 credit/scorer:1.4.0 digits/classifier:1.1.0; do
	show sign --key keys/release.key "$m"
done
show lineage record --key keys/provenance.key --parent credit/scorer:1.3.0 --dataset "train.csv=$MODELS/credit/train.csv" \
	--code https://git.example.com/credit@4f2c1d9 --run run-2026-02-11 credit/scorer:1.4.0
digits=sha256:$(sed -nE 's/.*"sha256": "([0-9a-f]+)".*/\1/p' "$MODELS/digits/dataset.json")
show lineage record --key keys/provenance.key --parent digits/classifier:1.0.0 --dataset "uci-digits=$digits" \
	--code https://git.example.com/digits@90ab12e digits/classifier:1.1.0
show verify --trust trust.yaml credit/scorer:1.4.0

step "5. A golden suite, from the reference environment"
environment reference 1.4.0 --threads 1
show suite record credit/suite:1 --model credit/scorer:1.4.0 --url "http://$(cat reference.port)" --name credit --version 1.4.0 \
	--cases "$MODELS/credit/cases.jsonl" --labels decline,approve --threshold 0.5 --classification synthetic --margin 0.01

step "6. Three environments claim to serve version 1.4.0. Do they behave the same?"
environment prod-eu 1.4.0 --threads 1
environment prod-us 1.4.0 --threads 2
if [ "$BAD" = off ]; then
	environment edge-box 1.4.0
else
	environment edge-box 1.3.0 # somebody forgot to copy the new file
fi
names=(prod-eu prod-us edge-box)
regions=(eu-central-1 us-east-1 on-device)
node=$ROOT/examples/environments/ort-native
if command -v node >/dev/null && [ -d "$node/node_modules/onnxruntime-node" ]; then
	node "$node/server.mjs" --model "$MODELS/credit/1.4.0" --name credit --version 1.4.0 --port-file "$DIR/onprem-ort.port" >onprem-ort.log 2>&1 &
	pids+=($!)
	wait_for onprem-ort.port
	names+=(onprem-ort)
	regions+=(on-premises)
	say "and a fourth: another runtime altogether, ONNX Runtime on Node.js"
elif [ -n "${CI:-}" ]; then
	fail "Node.js or onnxruntime-node is missing; scripts/deps installs them"
else
	say "left out: a fourth, ONNX Runtime on Node.js, which is not installed (scripts/deps does)"
fi
declare -A verdicts
rows=()
for i in "${!names[@]}"; do
	env=${names[$i]}
	show env register "$env" --url "http://$(cat "$env.port")" --model credit --version 1.4.0 --label "region=${regions[$i]}" --local |
		grep -vE '^  observed'
	printf '\n$ assay replay credit/scorer:1.4.0 --suite credit/suite:1 --env %s\n' "$env"
	status=0
	"$ASSAY" replay credit/scorer:1.4.0 --suite credit/suite:1 --env "$env" -o json >"$env.replay.json" || status=$?
	case $status in 0 | 3 | 4) ;; *) fail "the replay of $env failed" ;; esac
	replay=$(field replay <"$env.replay.json")
	[ -n "$replay" ] || fail "the replay of $env has no digest"
	expect $status "$ASSAY" judge "$replay" >"$env.judge.txt"
	status=0
	"$ASSAY" certify --key keys/conformance.key "$replay" -o json >"$env.certify.json" || status=$?
	verdicts[$env]=$(field verdict <"$env.certify.json")
	rows+=("$(printf '%-12s %-13s %s' "$env" "${verdicts[$env]}" "$(field difference <"$env.certify.json")")")
done
printf '\n%s%-12s %-13s %s%s\n' "$bold" ENVIRONMENT VERDICT DIFFERENCE "$plain"
printf '%s\n' "${rows[@]}"
printf '\n  %s\n' "$(field claim <prod-eu.certify.json)"
[ "${verdicts[prod-eu]}" = CERTIFIED ] || fail "prod-eu was not certified"
[ "${verdicts[prod-us]}" = CERTIFIED ] || fail "prod-us was not certified"
[ "${verdicts[edge-box]}" = REJECTED ] || fail "edge-box serves an older model under the new name, and was ${verdicts[edge-box]}"
if [ -n "${verdicts[onprem-ort]:-}" ]; then
	[ "${verdicts[onprem-ort]}" = CERTIFIED ] || fail "onprem-ort was not certified"
fi
grep -q 'decisions flip' edge-box.certify.json || fail "the rejection does not say how many decisions flip"

step "7. The gate, what ran where, and where it came from"
printf '\n$ assay gate credit/scorer:1.4.0 --env prod-eu\n'
expect 0 "$ASSAY" gate credit/scorer:1.4.0 --env prod-eu
printf '\n$ assay gate credit/scorer:1.4.0 --env prod-us\n'
expect 0 "$ASSAY" gate credit/scorer:1.4.0 --env prod-us
printf '\n$ assay gate credit/scorer:1.4.0 --env edge-box\n'
expect 3 "$ASSAY" gate credit/scorer:1.4.0 --env edge-box
printf '\n  The same decision, made here from what the registry holds, without its gate:\n'
expect 0 "$ASSAY" gate credit/scorer:1.4.0 --env prod-eu --offline --trust trust.yaml >/dev/null
expect 3 "$ASSAY" gate credit/scorer:1.4.0 --env edge-box --offline --trust trust.yaml >/dev/null
say "allow for prod-eu, deny for edge-box"
show deploy credit/scorer:1.3.0 --env prod-eu --key keys/deployment.key --from 2026-01-10T08:00:00Z
show deploy credit/scorer:1.4.0 --env prod-eu --key keys/deployment.key --from 2026-03-01T08:00:00Z
show env ran prod-eu --at 2026-02-01T00:00:00Z | tee ran-before.txt
show env ran prod-eu --at 2026-03-03T12:00:00Z | tee ran-after.txt
grep -q 'credit/scorer:1.3.0' ran-before.txt || fail "1.3.0 did not run on 1 February"
sed -n 3p ran-after.txt | grep -q 'credit/scorer:1.4.0' || fail "1.4.0 did not run on 3 March"
show lineage show credit/scorer:1.4.0 | tee lineage.txt
grep -q 'dataset train.csv.*verified' lineage.txt || fail "the lineage does not reach the data"

step "8. Proof, without the server"
certificate=$(field statement <prod-eu.certify.json)
show log checkpoint
"$ASSAY" log prove "$certificate" --out certificate.proof
say "(with the log's key from step 2, and no network)"
printf '\n$ assay log verify certificate.proof --key log.vkey --about %s\n' "$certificate"
ASSAY_SERVER=http://127.0.0.1:1 expect 0 "$ASSAY" log verify certificate.proof --key log.vkey --about "$certificate"
sed 's/^index .*/index 0/' certificate.proof >forged.proof
ASSAY_SERVER=http://127.0.0.1:1 expect 3 "$ASSAY" log verify forged.proof --key log.vkey

step "9. All of it came out as it must."
if [ -n "$KEEP" ]; then
	trap - EXIT
	cat <<TXT

The server and the environments are still up (data, keys and logs in $DIR). Try:

  export ASSAY_SERVER=$ASSAY_SERVER PATH=$ROOT/bin:\$PATH; cd $DIR
  assay show credit/scorer:1.4.0
  assay withdraw --key keys/withdrawal.key --reason "trained on data we may not use" credit/scorer:1.3.0
  assay gate credit/scorer:1.4.0 --env prod-eu          # denied now: its parent was withdrawn
  oras discover --plain-http ${ASSAY_SERVER#http://}/credit/scorer:1.4.0

Open:  $ASSAY_SERVER/api/v1/versions?repository=credit/scorer
       $ASSAY_SERVER/api/v1/openapi.json
Stop:  kill ${pids[*]}
TXT
else
	say "(KEEP=1 leaves the server up and says what to try next)"
fi
