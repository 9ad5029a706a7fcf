package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
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

// Marshal returns v in the JSON Canonicalization Scheme (RFC 8785). It refuses
// an integer that the scheme would round.
func Marshal(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if n := rounded(raw); n != "" {
		return nil, fmt.Errorf("integer %s is not exact as an IEEE 754 double, which is what canonical JSON has for numbers: write it as text", n)
	}
	return jsoncanonicalizer.Transform(raw)
}

// exactDigits is how long an integer may be without a closer look: all of 15
// digits are exact.
const exactDigits = 15

// rounded returns the first integer in valid JSON that becomes another one as
// a double, or "": the canonicalizer would change it without a word.
func rounded(raw []byte) string {
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '"':
			for i++; raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
			i++
		case c == '-' || '0' <= c && c <= '9':
			start := i
			integer := true
			for ; i < len(raw); i++ {
				if c := raw[i]; c == '.' || c == 'e' || c == 'E' {
					integer = false
				} else if c != '-' && c != '+' && (c < '0' || c > '9') {
					break
				}
			}
			n := string(raw[start:i])
			if !integer || len(n) <= exactDigits {
				continue
			}
			f, err := strconv.ParseFloat(n, 64)
			if err != nil || strconv.FormatFloat(f, 'f', -1, 64) != n {
				return n
			}
		default:
			i++
		}
	}
	return ""
}

// Unmarshal parses exactly one JSON document into v, strictly: valid UTF-8,
// at most MaxDocument bytes and MaxDepth levels, no duplicate keys, no fields
// that v does not have, letter for letter, no null for a single value, nothing
// after the document.
func Unmarshal(data []byte, v any) error {
	return unmarshal(data, v, optional)
}

func unmarshal(data []byte, v any, p presence) error {
	if len(data) > MaxDocument {
		return fmt.Errorf("document of %d bytes is over the limit of %d", len(data), MaxDocument)
	}
	if err := CheckJSON(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	return exact(data, reflect.TypeOf(v).Elem(), p, "")
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
