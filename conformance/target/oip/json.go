package oip

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/tensor"
	"github.com/assay-dev/assay/conformance/target/wire"
	"github.com/assay-dev/assay/verify/attest"
)

// Protocol implements [target.Protocol] over REST with tensors in JSON. It
// has no FP16 and no BF16: "FP16 and BF16 … are problematic" there, and what
// a decimal stands for would be up to the server.
type Protocol struct{}

var _ target.Protocol = Protocol{}

type tensorJSON struct {
	Name       string                     `json:"name"`
	Shape      []int64                    `json:"shape"`
	Datatype   string                     `json:"datatype"`
	Parameters map[string]json.RawMessage `json:"parameters"`
	Data       json.RawMessage            `json:"data"`
}

// Encode implements [target.Protocol]. Numbers are written as the shortest
// decimal that reads back as the same bits.
func (Protocol) Encode(q target.Question) ([]byte, error) {
	if err := checkQuestion(q); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	// Written by hand, so that the bytes are the same whatever becomes of
	// encoding/json: they are hashed.
	fmt.Fprintf(&b, `{"id":%s,"inputs":[`, quote(q.ID))
	for i, t := range q.Inputs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":%s,"shape":[%s],"datatype":%s,"data":[`, quote(t.Name), join(t.Shape), quote(t.Datatype))
		if err := tensor.WriteJSON(&b, t); err != nil {
			return nil, fmt.Errorf("input %s: %w", t.Name, err)
		}
		b.WriteString("]}")
	}
	b.WriteString(`],"outputs":[`)
	for i, o := range q.Outputs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":%s}`, quote(o))
	}
	b.WriteString("]}")
	return b.Bytes(), nil
}

func quote(s string) string {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string can be encoded
	}
	return string(raw)
}

func join(shape []int64) string {
	var parts []string
	for _, d := range shape {
		parts = append(parts, strconv.FormatInt(d, 10))
	}
	return strings.Join(parts, ",")
}

// Decode implements [target.Protocol].
func (Protocol) Decode(q target.Question, r target.Response) (*target.Answer, error) {
	return decodeREST(q, r, false)
}

// decodeREST reads an answer over REST: a JSON object, and after it, if the
// header says so, the bytes of tensors.
func decodeREST(q target.Question, r target.Response, binary bool) (*target.Answer, error) {
	if err := wire.Check(r); err != nil {
		return nil, err
	}
	head, rest := r.Body, []byte(nil)
	if v, ok := r.Header["Inference-Header-Content-Length"]; ok {
		n, err := strconv.ParseUint(v, 10, 32)
		switch {
		case err != nil || n > uint64(len(r.Body)):
			return nil, target.Wrongf("malformed", "Inference-Header-Content-Length is %q for a body of %d bytes", v, len(r.Body))
		case !binary:
			return nil, target.Wrongf("malformed", "the answer has tensors as bytes, which were not asked for")
		}
		head, rest = r.Body[:n], r.Body[n:]
	}
	// NaN and Infinity are no JSON; some servers write them all the same.
	if err := attest.CheckJSON(head); err != nil {
		if bytes.Contains(head, []byte("NaN")) || bytes.Contains(head, []byte("Infinity")) {
			return nil, target.Wrongf("not-finite", "the answer has numbers that are not finite: %.100q", head)
		}
		return nil, target.Wrongf("malformed", "%v: %.100q", err, head)
	}
	var a struct {
		Error      json.RawMessage            `json:"error"`
		Model      string                     `json:"model_name"`
		Version    string                     `json:"model_version"`
		ID         string                     `json:"id"`
		Parameters map[string]json.RawMessage `json:"parameters"`
		Outputs    []tensorJSON               `json:"outputs"`
	}
	if err := json.Unmarshal(head, &a); err != nil {
		return nil, target.Wrongf("malformed", "%v", err)
	}
	if a.Error != nil {
		return nil, target.Wrongf("error-in-200", "the answer of status 200 is an error: %.200s", a.Error)
	}
	e := envelope{ID: a.ID, Model: a.Model, Version: a.Version}
	for k, v := range a.Parameters {
		if e.Parameters == nil {
			e.Parameters = map[string]string{}
		}
		e.Parameters[k] = text(v)
	}
	for _, o := range a.Outputs {
		t, err := decodeTensor(o, &rest)
		if err != nil {
			return nil, err
		}
		e.Outputs = append(e.Outputs, t)
	}
	if len(rest) > 0 {
		return nil, target.Wrongf("malformed", "%d bytes are left over after the last tensor", len(rest))
	}
	return e.answer(q)
}

// text is a JSON string without its quotes, or any other value as it is.
func text(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	return string(v)
}

// decodeTensor reads an output whose data are JSON, or the next bytes of rest.
func decodeTensor(o tensorJSON, rest *[]byte) (compare.Tensor, error) {
	t := compare.Tensor{Name: o.Name, Datatype: o.Datatype, Shape: o.Shape}
	if _, ok := tensor.Widths[o.Datatype]; !ok {
		return t, target.Wrongf("malformed", "output %q has datatype %q, which is not one of the protocol", o.Name, o.Datatype)
	}
	if raw, ok := o.Parameters["binary_data_size"]; ok {
		n, err := strconv.ParseUint(string(raw), 10, 32)
		switch {
		case err != nil || o.Data != nil:
			return t, target.Wrongf("malformed", "output %q: binary_data_size is %s, and data %.20s", o.Name, raw, o.Data)
		case n > uint64(len(*rest)):
			return t, target.Wrongf("malformed", "output %q has %d bytes, and %d are left", o.Name, n, len(*rest))
		}
		t.Bits, *rest = (*rest)[:n:n], (*rest)[n:]
		return t, nil
	}
	bits, n, _, err := tensor.ReadJSON(o.Datatype, o.Data)
	if err != nil {
		var w *target.Wrong
		if errors.As(err, &w) {
			w.Message = fmt.Sprintf("output %q: %s", o.Name, w.Message)
		}
		return t, err
	}
	if len(o.Data) == 0 || o.Data[0] != '[' {
		return t, target.Wrongf("malformed", "output %q: data is no array", o.Name)
	}
	t.Bits = bits
	if want := compare.Elements(o.Shape); n != want {
		return t, target.Wrongf("malformed", "output %q has %d elements for shape %v", o.Name, n, o.Shape)
	}
	return t, nil
}
