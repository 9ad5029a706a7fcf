#!/usr/bin/env bash
# A language model behind OpenAI's interface, served by llama.cpp: does it say
# the same with another number of threads, and is it found when somebody serves
# the same model rounded to 4 bits, alone or for a tenth of the questions?
#
# What is compared is the text of each answer, to the byte, and the log
# probabilities of its tokens; every other answer is streamed. Then chats, which
# call tools: each is asked streamed and whole, and on another number of threads
# at a second endpoint, which is what noise is measured by. Exits 0 only if every
# environment came out as it must.
#
#   OFF=q8_0|q4_0|canary   leave this defect out; the script must fail then
#   WORK_DIR               where to work (default: a temporary folder, removed at the end)
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
ASSAY=$ROOT/bin/assay
MODEL=$ROOT/examples/models/assistant
LLAMA=$ROOT/examples/environments/llama
OPTIONS=$ROOT/examples/language-model/protocol.yaml
CHAT=$ROOT/examples/language-model/chat.yaml
OFF=${OFF:-}

DIR=${WORK_DIR:-$(mktemp -d)}
mkdir -p "$DIR"
pids=()
cleanup() {
	status=$?
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
	for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
	if [ -z "${WORK_DIR:-}" ]; then rm -rf "$DIR"; fi
	if [ $status != 0 ]; then printf '\nlanguage-model FAILED (status %s).\n' "$status" >&2; fi
}
trap cleanup EXIT
step() { printf '\n%s\n' "$*"; }
fail() { printf 'language-model: %s\n' "$*" >&2; exit 1; }
field() { sed -nE 's/^ *"'"$1"'": "([^"]*)",?$/\1/p' | head -1; }
wait_for() {
	for _ in $(seq 600); do
		[ -s "$1" ] && return
		sleep 0.1
	done
	fail "$1 was not written in 60 s; see $DIR/*.log"
}
case $OFF in "" | q8_0 | q4_0 | canary) ;; *) fail "OFF=$OFF is none of q8_0, q4_0, canary" ;; esac
[ -x "$ASSAY" ] || fail "run 'make build' first"
[ -d "$LLAMA/node_modules/@node-llama-cpp/linux-x64" ] || fail "examples/environments/llama is not installed: run 'make deps'"
unset CI ASSAY_SERVER

llama() { # NAME FILE FLAGS...: llama.cpp that says it serves version 1.0.0
	local name=$1 file=$2
	shift 2
	node "$LLAMA/server.mjs" --model "$file" --name assistant --version 1.0.0 --port-file "$DIR/$name.port" "$@" >"$DIR/$name.log" 2>&1 &
	pids+=($!)
	wait_for "$DIR/$name.port"
}

step "1. The model as a GGUF file of f16, and a golden suite from its reference"
"$ASSAY" serve --addr 127.0.0.1:0 --grpc-addr 127.0.0.1:0 --data "$DIR/data" --reserve 67108864 --ready-file "$DIR/server.json" >"$DIR/server.log" 2>&1 &
pids+=($!)
wait_for "$DIR/server.json"
ASSAY_SERVER=$(sed -E 's/.*"http":"([^"]*)".*/\1/' "$DIR/server.json")
export ASSAY_SERVER COSIGN_PASSWORD=${COSIGN_PASSWORD-}
cd "$DIR"
"$ASSAY" keys generate --role release,conformance --out keys >/dev/null
"$ASSAY" trust new release=keys/release.pub conformance=keys/conformance.pub >trust.yaml
"$ASSAY" trust apply trust.yaml >/dev/null
(cd "$MODEL" && "$ASSAY" push -q lending/assistant:1.0.0 assistant-f16.gguf)
for kind in q8_0 q4_0; do node "$LLAMA/quantize.mjs" $kind "$MODEL/assistant-f16.gguf" $kind.gguf; done
llama reference "$MODEL/assistant-f16.gguf"
"$ASSAY" suite record lending/suite:1 --model lending/assistant:1.0.0 --protocol openai-completions --options "$OPTIONS" --url "http://$(cat reference.port)/v1" \
	--name assistant --version 1.0.0 --cases "$MODEL/questions.jsonl" --decide exact-text --limit logprob-difference=0.001 --classification synthetic --margin 0.05

step "2. Four environments that say they serve version 1.0.0"
# Rounded, and declared as the file that was released.
rounded() { # NAME KIND
	if [ "$OFF" = "$2" ]; then llama "$1" "$MODEL/assistant-f16.gguf"; else llama "$1" "$2.gguf" --declare assistant-f16.gguf; fi
}
llama threads "$MODEL/assistant-f16.gguf" --threads 2
rounded eight q8_0
rounded four q4_0
if [ "$OFF" = canary ]; then llama rollout "$MODEL/assistant-f16.gguf"; else llama rollout "$MODEL/assistant-f16.gguf" --canary q4_0.gguf --canary-share 0.1; fi

declare -A verdict
rows=()
for row in "threads:f16, two threads" "eight:q8_0" "four:q4_0" "rollout:f16, a tenth of it q4_0"; do
	env=${row%%:*} what=${row#*:} status=0
	"$ASSAY" env register "$env" --protocol openai-completions --options "$OPTIONS" --url "http://$(cat "$env.port")/v1" --model assistant --version 1.0.0 --local >/dev/null
	"$ASSAY" replay lending/assistant:1.0.0 --suite lending/suite:1 --env "$env" --probes 8 --report "$env.html" -o json >"$env.replay.json" || status=$?
	case $status in 0 | 3 | 4) ;; *) fail "the replay of $env failed" ;; esac
	status=0
	"$ASSAY" certify --key keys/conformance.key "$(field replay <"$env.replay.json")" -o json >"$env.certify.json" || status=$?
	case $status in 0 | 3 | 4) ;; *) fail "certifying $env failed" ;; esac
	verdict[$env]=$(field verdict <"$env.certify.json")
	rows+=("$(printf '%-9s %-26s %-13s %s' "$env" "$what" "${verdict[$env]}" "$(field difference <"$env.certify.json")")")
done
printf '\n%-9s %-26s %-13s %s\n' WHERE WHAT VERDICT DIFFERENCE
printf '%s\n' "${rows[@]}"
printf '\n  %s\n' "$(field claim <threads.certify.json)"
[ "${verdict[threads]}" = CERTIFIED ] || fail "threads serves the same file, and was ${verdict[threads]}"
for env in eight four rollout; do
	[ "${verdict[$env]}" = REJECTED ] || fail "$env does not behave as the reference, and was ${verdict[$env]}"
done
grep -q 'logprob-difference is .* at most 0.001 is allowed' four.html || fail "the refusal of four does not speak of its log probabilities"

step "3. Chats: each streamed and whole, on one thread and on two"
head -n 80 "$MODEL/cases.jsonl" >chats.jsonl
"$ASSAY" suite record lending/chats:1 --model lending/assistant:1.0.0 --protocol openai-chat --options "$CHAT" --url "http://$(cat reference.port)/v1" \
	--noise-url "http://$(cat threads.port)/v1" --name assistant --version 1.0.0 --cases chats.jsonl --decide exact-text --both-ways \
	--limit logprob-difference=0.001 --classification synthetic --margin 0.1 --border 5
# A noise endpoint that is of another precision is none, whatever it calls itself.
llama liar q4_0.gguf --declare assistant-f16.gguf --threads 2
if "$ASSAY" suite record lending/chats:2 --model lending/assistant:1.0.0 --protocol openai-chat --options "$CHAT" --url "http://$(cat reference.port)/v1" \
	--noise-url "http://$(cat liar.port)/v1" --name assistant --version 1.0.0 --cases chats.jsonl --decide exact-text \
	--classification synthetic --margin 0.1 --border 5 2>refused.txt; then fail "q4_0 was taken for another number of threads"; fi
grep -q 'not the same but for their threads' refused.txt || fail "the noise endpoint of q4_0 was refused for another reason: $(cat refused.txt)"
sed 's/^/  /' refused.txt
for env in threads four; do
	status=0
	other=()
	if [ $env = threads ]; then other=(--noise-url "http://$(cat reference.port)/v1"); fi
	"$ASSAY" env register "$env-chat" --protocol openai-chat --options "$CHAT" --url "http://$(cat "$env.port")/v1" --model assistant --version 1.0.0 --local >/dev/null
	"$ASSAY" replay lending/assistant:1.0.0 --suite lending/chats:1 --env "$env-chat" --probes 8 "${other[@]}" >"$env.chat.txt" || status=$?
	grep -E '^(CERTIFIED|REJECTED|INCONCLUSIVE)|difference:|streamed and whole,|threads:' "$env.chat.txt" || true
	if [ $env = threads ]; then want=0; else want=3; fi
	[ $status = $want ] || fail "the chats of $env ended with status $status, and had to with $want"
done
grep -q 'threads: 8 cases asked on 1 instead of 2' threads.chat.txt || fail "the report of threads does not speak of them"

step "4. The same file is certified, and each rounding of it is found."
