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
)

// Names of the protocols in environment documents.
const (
	Name       = "oip-v2-rest"        // tensors in JSON
	NameBinary = "oip-v2-rest-binary" // tensors as bytes after the JSON
	NameGRPC   = "oip-v2-grpc"
)

// widths are the sizes of elements in bytes; 0 stands for elements with a
// length in front. BF16 is Triton's.
var widths = map[string]int{
	"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2,
	"UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8, "BYTES": 0,
}

// checkBits says why the bits of a tensor are not those of its shape and
// datatype, or nil.
func checkBits(t compare.Tensor) error {
	w, ok := widths[t.Datatype]
	if !ok {
		return fmt.Errorf("datatype %q is not one of the protocol", t.Datatype)
	}
	n := compare.Elements(t.Shape)
	if n < 0 {
		return fmt.Errorf("%v is no shape", t.Shape)
	}
	switch {
	case t.Datatype == "BYTES":
		got, err := split(t.Bits)
		if err != nil {
			return err
		}
		if len(got) != n {
			return fmt.Errorf("%d elements for shape %v", len(got), t.Shape)
		}
	case len(t.Bits) != n*w:
		return fmt.Errorf("%d bytes for shape %v of %s", len(t.Bits), t.Shape, t.Datatype)
	case t.Datatype == "BOOL":
		for i, b := range t.Bits {
			if b > 1 {
				return fmt.Errorf("element %d is %d, which is neither true nor false", i, b)
			}
		}
	}
	return nil
}

// split takes the elements of BYTES apart: "an element is represented by a
// 4-byte unsigned integer giving the length followed by the actual bytes".
func split(bits []byte) (list [][]byte, err error) {
	for len(bits) > 0 {
		if len(bits) < 4 {
			return nil, fmt.Errorf("%d bytes are left over after %d elements", len(bits), len(list))
		}
		n := uint64(bits[0]) | uint64(bits[1])<<8 | uint64(bits[2])<<16 | uint64(bits[3])<<24
		if n > uint64(len(bits)-4) {
			return nil, fmt.Errorf("element %d has a length of %d and %d bytes are left", len(list), n, len(bits)-4)
		}
		list = append(list, bits[4:4+n])
		bits = bits[4+n:]
	}
	return list, nil
}

// checkQuestion says why a question cannot be asked, or nil.
func checkQuestion(q target.Question) error {
	switch {
	case q.Request != nil:
		return fmt.Errorf("question %s is free JSON, and this protocol asks with tensors", q.ID)
	case len(q.Inputs) == 0:
		return fmt.Errorf("question %s has no input tensors", q.ID)
	}
	for _, t := range q.Inputs {
		if err := checkBits(t); err != nil {
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
		if err := checkBits(t); err != nil {
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
