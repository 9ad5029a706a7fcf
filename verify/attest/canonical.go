package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
)

// Bounds of what [Unmarshal] reads.
const (
	// MaxDocument is the largest JSON document that is parsed, in bytes.
	MaxDocument = 4 << 20

	// MaxDepth is the deepest nesting of objects and arrays.
	MaxDepth = 64
)

// Marshal returns v in the JSON Canonicalization Scheme (RFC 8785).
func Marshal(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jsoncanonicalizer.Transform(raw)
}

// Unmarshal parses exactly one JSON document into v, strictly: valid UTF-8,
// at most MaxDocument bytes and MaxDepth levels, no duplicate keys, no fields
// that v does not have, nothing after the value.
func Unmarshal(data []byte, v any) error {
	if len(data) > MaxDocument {
		return fmt.Errorf("document of %d bytes is over the limit of %d", len(data), MaxDocument)
	}
	if err := CheckJSON(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// CheckJSON refuses what encoding/json lets pass and two readers could read
// differently: duplicate keys, invalid UTF-8, more than MaxDepth levels, more
// than one value. It does not look at which fields there are.
func CheckJSON(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("document is not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	// keys[i] are the object keys seen at depth i+1; nil for an array.
	var keys []map[string]bool
	expectKey := false
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case json.Delim:
			switch t {
			case '{', '[':
				if len(keys) == MaxDepth {
					return fmt.Errorf("document is nested deeper than %d levels", MaxDepth)
				}
				var set map[string]bool
				if t == '{' {
					set = map[string]bool{}
				}
				keys = append(keys, set)
			case '}', ']':
				keys = keys[:len(keys)-1]
			}
		case string:
			if expectKey {
				top := keys[len(keys)-1]
				if top[t] {
					return fmt.Errorf("duplicate key %q", t)
				}
				top[t] = true
				expectKey = false
				continue // its value comes next
			}
		}
		if len(keys) == 0 {
			break
		}
		expectKey = keys[len(keys)-1] != nil
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the document")
	}
	return nil
}
