package oip

import (
	"bytes"
	"fmt"

	"github.com/assay-dev/assay/conformance/target"
)

// Binary implements [target.Protocol] over REST with every tensor as bytes:
// "the HTTP body … will contain the JSON inference request or response object
// followed by the binary tensor data in the same order" (Triton, binary
// tensor data extension). No number is ever a decimal.
type Binary struct{}

var _ target.Protocol = Binary{}

// Encode implements [target.Protocol]. How long the JSON is follows from the
// bytes: see [headerLength].
func (Binary) Encode(q target.Question) ([]byte, error) {
	if err := checkQuestion(q); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"id":%s,"inputs":[`, quote(q.ID))
	for i, t := range q.Inputs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":%s,"shape":[%s],"datatype":%s,"parameters":{"binary_data_size":%d}}`,
			quote(t.Name), join(t.Shape), quote(t.Datatype), len(t.Bits))
	}
	b.WriteString(`],"outputs":[`)
	for i, o := range q.Outputs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":%s,"parameters":{"binary_data":true}}`, quote(o))
	}
	b.WriteString("]}")
	for _, t := range q.Inputs {
		b.Write(t.Bits)
	}
	return b.Bytes(), nil
}

// headerLength returns the length of the JSON object that a question begins
// with, or -1 if it begins with none.
func headerLength(request []byte) int {
	depth, quoted, escaped := 0, false, false
	for i, c := range request {
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				return i + 1
			}
		case i == 0:
			return -1
		}
	}
	return -1
}

// Decode implements [target.Protocol]. Outputs that came as JSON all the same
// are read as that.
func (Binary) Decode(q target.Question, r target.Response) (*target.Answer, error) {
	return decodeREST(q, r, true)
}
