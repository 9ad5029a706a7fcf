package attest

import (
	"embed"
	"fmt"
)

// The schemas are made from the types: go test ./verify/attest -run Schemas -update
//
//go:embed schema/*.schema.json
var schemas embed.FS

// Schema returns the JSON Schema (draft 2020-12) of a document: certificate,
// refusal, lineage, deployment, approval, withdrawal, statement, status-list,
// environment, suite, case, text, criteria, plan, observation, replay, report or
// pieces. It says which
// fields there are and of which type; what [Predicate.Validate] asks beyond
// that is in its comments.
func Schema(name string) ([]byte, error) {
	raw, err := schemas.ReadFile("schema/" + name + ".schema.json")
	if err != nil {
		return nil, fmt.Errorf("there is no schema of %q", name)
	}
	return raw, nil
}
