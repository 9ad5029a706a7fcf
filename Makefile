# Everything a person or a pipeline does here has a target; `make help` lists them.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c

export GOTOOLCHAIN := local
# The tools are built by name at the versions below and kept outside the tree,
# so that a clean clone finds them again.
export ASSAY_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/assay/tools

TOOLS := \
	oras@oras.land/oras/cmd/oras@v1.3.6 \
	crane@github.com/google/go-containerregistry/cmd/crane@v0.22.1 \
	cosign@github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3 \
	buf@github.com/bufbuild/buf/cmd/buf@v1.75.0 \
	staticcheck@honnef.co/go/tools/cmd/staticcheck@v0.8.2 \
	conformance@github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111

# What the benchmarks are run beside; tests do without it.
BENCH_REGISTRY := github.com/distribution/distribution/v3/cmd/registry@v3.1.2

GOMLX := examples/environments/gomlx
NODE  := ort-native ort-web llama
# A module of its own, for what only tests need.
OPENAI := conformance/target/openai/official

.PHONY: help
help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.PHONY: build
build: ## build bin/assay and the example model server
	@mkdir -p bin
	go build -trimpath -o bin/assay ./cmd/assay
	cd $(GOMLX) && go build -trimpath -o $(CURDIR)/bin/gomlx-oip .

.PHONY: demo
demo: build ## the main job, step by step (KEEP=1 leaves the server up)
	@if command -v npm >/dev/null; then scripts/node-modules; fi
	@KEEP=$(KEEP) examples/demo/run.sh

# What these install is there: a test that lacks it fails, and is not skipped as
# it is by a plain 'go test' on a machine that has not all of it.
test soak: export CI := true

.PHONY: test
test: deps tools lint ## install what the tests need and run them all, with the race detector
	go test -race -timeout 30m ./...
	cd $(GOMLX) && go test -race -timeout 5m ./...
	cd $(OPENAI) && go test -race -timeout 5m ./...
	@for e in $(NODE); do (cd examples/environments/$$e && $(CURDIR)/scripts/with-node npm test --silent) || exit 1; done
	scripts/demo-test
	scripts/with-node scripts/examples-test regulated-credit 'int8=phone does not behave as the reference, and was CERTIFIED' \
		'canary=rollout does not behave as the reference, and was CERTIFIED' 'threshold=partner does not behave as the reference, and was CERTIFIED'
	scripts/with-node scripts/examples-test language-model 'q8_0=eight does not behave as the reference, and was CERTIFIED' \
		'q4_0=four does not behave as the reference, and was CERTIFIED' \
		'canary=rollout does not behave as the reference, and was CERTIFIED'

.PHONY: lint
lint: tools ## formatting, vet, staticcheck, buf lint, and that generated code is current
	scripts/lint

.PHONY: generate
generate: tools ## make the generated code again
	proto/generate.sh

.PHONY: soak
soak: deps tools ## the long versions: fuzzing, crash loops, simulations
	scripts/soak

.PHONY: bench
bench: tools build ## each figure beside the limit of the same run (ROWS=push, QUICK=1, KEEP=FOLDER)
	scripts/tool registry $(BENCH_REGISTRY)
	go run ./scripts/bench -tools $(ASSAY_TOOLS) $(if $(QUICK),-quick) $(if $(ROWS),-rows '$(ROWS)') $(if $(KEEP),-keep $(KEEP))
	$(if $(ROWS),,go test -run '^$$' -bench 'VerifyBundle|SignedPush' -benchtime 300x ./verify ./registry/oci)
	$(if $(ROWS),,go test -run '^$$' -bench CompareFP32 -benchtime 20x ./conformance/compare)
	@# A replay beside vegeta, which stays out of the program's module.
	$(if $(ROWS),,cd conformance/bench && go test -run '^$$' -bench . -benchtime 5x .)

.PHONY: deps
deps: ## install Debian and npm packages that the tests need, where missing
	scripts/deps

.PHONY: tools
tools: ## build the clients and checkers the tests use
	@for t in $(TOOLS); do scripts/tool "$${t%%@*}" "$${t#*@}"; done

.PHONY: clean
clean: ## remove what was built here (not the cache of tools)
	rm -rf bin .bench examples/environments/*/node_modules
