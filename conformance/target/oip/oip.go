// Package oip speaks the Open Inference Protocol v2
// (https://github.com/kserve/open-inference-protocol): over REST with tensors
// in JSON, over REST with tensors as bytes (Triton's extension
// binary_tensor_data), and over gRPC. It reads Triton's extensions that carry
// evidence, model_configuration and statistics, where a server has them.
package oip

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/tensor"
)

// Names of the protocols in environment documents.
const (
	Name       = "oip-v2-rest"        // tensors in JSON
	NameBinary = "oip-v2-rest-binary" // tensors as bytes after the JSON
	NameGRPC   = "oip-v2-grpc"
)

// checkQuestion says why a question cannot be asked, or nil.
func checkQuestion(q target.Question) error {
	switch {
	case q.Request != nil:
		return fmt.Errorf("question %s is free JSON, and this protocol asks with tensors", q.ID)
	case len(q.Inputs) == 0:
		return fmt.Errorf("question %s has no input tensors", q.ID)
	}
	for _, t := range q.Inputs {
		if err := tensor.Check(t); err != nil {
			return fmt.Errorf("input %s: %w", t.Name, err)
		}
	}
	return nil
}

// An envelope is what an answer says of itself.
type envelope struct {
	ID, Model, Version string
	Outputs            []compare.Tensor
	Parameters         map[string]string
}

// answer checks that an envelope answers the question, and puts its outputs
// into the question's order: the protocol promises none.
func (e envelope) answer(q target.Question) (*target.Answer, error) {
	switch {
	case e.ID != q.ID:
		return nil, target.Wrongf("wrong-id", "the answer is to %q", e.ID)
	case e.Model != q.Model:
		return nil, target.Wrongf("wrong-model", "model %q answered", e.Model)
	case q.Version != "" && e.Version != q.Version:
		return nil, target.Wrongf("wrong-version", "version %q answered, not %q", e.Version, q.Version)
	}
	seen := map[string]bool{}
	for _, t := range e.Outputs {
		if seen[t.Name] || !slices.Contains(q.Outputs, t.Name) {
			return nil, target.Wrongf("extra-output", "output %q was not asked for, or came twice", t.Name)
		}
		seen[t.Name] = true
		if err := tensor.Check(t); err != nil {
			return nil, target.Wrongf("malformed", "output %q: %v", t.Name, err)
		}
	}
	for _, name := range q.Outputs {
		if !seen[name] {
			return nil, target.Wrongf("missing-output", "output %q is missing", name)
		}
	}
	a := &target.Answer{Model: e.Model, Version: e.Version, Outputs: e.Outputs, Applied: e.Parameters}
	slices.SortFunc(a.Outputs, func(x, y compare.Tensor) int {
		return cmp.Compare(slices.Index(q.Outputs, x.Name), slices.Index(q.Outputs, y.Name))
	})
	return a, nil
}
