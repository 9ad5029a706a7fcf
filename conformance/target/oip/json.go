package oip

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
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
		if err := writeData(&b, t); err != nil {
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

func writeData(b *bytes.Buffer, t compare.Tensor) error {
	if t.Datatype == "BYTES" {
		list, err := split(t.Bits)
		if err != nil {
			return err
		}
		for i, e := range list {
			if !utf8.Valid(e) {
				return fmt.Errorf("element %d is no UTF-8, which JSON cannot say; use %s or %s", i, NameBinary, NameGRPC)
			}
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(quote(string(e)))
		}
		return nil
	}
	w := widths[t.Datatype]
	var scratch [32]byte
	for i := 0; i*w < len(t.Bits); i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		e, s := t.Bits[i*w:(i+1)*w], scratch[:0]
		float := func(v float64, bits int) error {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return fmt.Errorf("element %d is %v, which JSON cannot say; use %s or %s", i, v, NameBinary, NameGRPC)
			}
			s = strconv.AppendFloat(s, v, 'g', -1, bits)
			return nil
		}
		var err error
		switch t.Datatype {
		case "BOOL":
			s = strconv.AppendBool(s, e[0] == 1)
		case "UINT8", "UINT16", "UINT32", "UINT64":
			s = strconv.AppendUint(s, unsigned(e), 10)
		case "INT8", "INT16", "INT32", "INT64":
			shift := 64 - 8*len(e) // extends the sign
			s = strconv.AppendInt(s, int64(unsigned(e)<<shift)>>shift, 10)
		case "FP32":
			err = float(float64(math.Float32frombits(binary.LittleEndian.Uint32(e))), 32)
		case "FP64":
			err = float(math.Float64frombits(binary.LittleEndian.Uint64(e)), 64)
		default:
			err = fmt.Errorf("%s cannot be said in JSON; use %s or %s", t.Datatype, NameBinary, NameGRPC)
		}
		if err != nil {
			return err
		}
		b.Write(s)
	}
	return nil
}

// unsigned reads a little-endian integer of any width.
func unsigned(e []byte) (v uint64) {
	for i, b := range e {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func appendUnsigned(out []byte, v uint64, width int) []byte {
	for i := range width {
		out = append(out, byte(v>>(8*i)))
	}
	return out
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
	if _, ok := widths[o.Datatype]; !ok {
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
	wrong := func(err error) error {
		var w *target.Wrong
		if errors.As(err, &w) {
			w.Message = fmt.Sprintf("output %q: %s", o.Name, w.Message)
			return w
		}
		return target.Wrongf("malformed", "output %q: %v", o.Name, err)
	}
	n := 0
	if err := elements(o.Data, func(tok json.Token) error {
		n++
		bits, err := element(t.Bits, o.Datatype, tok)
		t.Bits = bits
		return err
	}); err != nil {
		return t, wrong(err)
	}
	if want := compare.Elements(o.Shape); n != want {
		return t, target.Wrongf("malformed", "output %q has %d elements for shape %v", o.Name, n, o.Shape)
	}
	return t, nil
}

// element appends the bits of one element.
func element(bits []byte, datatype string, tok json.Token) ([]byte, error) {
	if tok == nil {
		return bits, target.Wrongf("not-finite", "data has null in the place of an element")
	}
	width := widths[datatype]
	switch v := tok.(type) {
	case json.Number:
		s := string(v)
		switch datatype {
		case "FP32":
			f, err := strconv.ParseFloat(s, 32)
			if err != nil {
				return bits, target.Wrongf("not-finite", "%s is no FP32", s)
			}
			return binary.LittleEndian.AppendUint32(bits, math.Float32bits(float32(f))), nil
		case "FP64":
			f, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return bits, target.Wrongf("not-finite", "%s is no FP64", s)
			}
			return binary.LittleEndian.AppendUint64(bits, math.Float64bits(f)), nil
		case "UINT8", "UINT16", "UINT32", "UINT64":
			u, err := strconv.ParseUint(s, 10, 8*width)
			if err != nil {
				return bits, fmt.Errorf("%s is no %s", s, datatype)
			}
			return appendUnsigned(bits, u, width), nil
		case "INT8", "INT16", "INT32", "INT64":
			i, err := strconv.ParseInt(s, 10, 8*width)
			if err != nil {
				return bits, fmt.Errorf("%s is no %s", s, datatype)
			}
			return appendUnsigned(bits, uint64(i), width), nil
		case "FP16", "BF16":
			return bits, fmt.Errorf("%s came as decimals, which do not say its bits; use %s or %s", datatype, NameBinary, NameGRPC)
		}
	case bool:
		if datatype == "BOOL" {
			b := byte(0)
			if v {
				b = 1
			}
			return append(bits, b), nil
		}
	case string:
		if datatype == "BYTES" {
			bits = binary.LittleEndian.AppendUint32(bits, uint32(len(v)))
			return append(bits, v...), nil
		}
		if datatype == "FP32" || datatype == "FP64" {
			return bits, target.Wrongf("not-finite", "data has %q in the place of a number", v)
		}
	}
	return bits, fmt.Errorf("data has %v in the place of a %s", tok, datatype)
}

// elements calls fn for each element of data that are given flat or nested:
// "the data … can be presented in a nested or flattened form, row-major"
// (Tensor Data).
func elements(raw json.RawMessage, fn func(json.Token) error) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	depth := 0
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch tok {
		case json.Delim('['):
			depth++
		case json.Delim(']'):
			depth--
		default:
			if _, ok := tok.(json.Delim); ok || depth == 0 {
				return errors.New("data is no array")
			}
			if err := fn(tok); err != nil {
				return err
			}
		}
	}
}
