package attest

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// presence says whether a document must have every field of its type.
type presence int

const (
	optional presence = iota // a field that is not there has its zero value
	complete                 // only fields marked omitempty or omitzero may be missing
)

var (
	unmarshalerType     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// exact refuses what encoding/json reads more generously than readers in other
// languages do, so that no two readers see two documents in the same bytes. It
// is called after the document was decoded into a value of type t, which has
// shown that the kinds fit.
//
// "Unmarshal matches incoming object keys to the keys used by Marshal …,
// ignoring case" (encoding/json): of {"verdict":"REJECTED",
// "Verdict":"CERTIFIED"} it takes the second. "Unmarshaling a JSON null into
// any other Go type has no effect on the value and produces no error": a null
// would pass for the zero value.
func exact(data []byte, t reflect.Type, p presence, path string) error {
	null := bytes.Equal(bytes.TrimSpace(data), []byte("null"))
	for t.Kind() == reflect.Pointer {
		if null {
			return nil
		}
		t = t.Elem()
	}
	if null {
		switch t.Kind() {
		case reflect.Slice, reflect.Map, reflect.Interface: // what Go writes for an empty one
			return nil
		}
		return fmt.Errorf("%s is null", named(path))
	}
	if p := reflect.PointerTo(t); p.Implements(unmarshalerType) || p.Implements(textUnmarshalerType) {
		return nil
	}
	switch t.Kind() {
	case reflect.Struct:
		var members map[string]json.RawMessage
		if err := json.Unmarshal(data, &members); err != nil {
			return err
		}
		fields := fieldsOf(t)
		for name, member := range members {
			f, ok := fields[name]
			if !ok {
				return fmt.Errorf("unknown field %q: names are compared letter for letter", join(path, name))
			}
			if err := exact(member, f.kind, p, join(path, name)); err != nil {
				return err
			}
		}
		for name, f := range fields {
			if _, ok := members[name]; !ok && p == complete && !f.omittable {
				return fmt.Errorf("%s is missing", join(path, name))
			}
		}
	case reflect.Map:
		var members map[string]json.RawMessage
		if err := json.Unmarshal(data, &members); err != nil {
			return err
		}
		for name, member := range members {
			if err := exact(member, t.Elem(), p, join(path, name)); err != nil {
				return err
			}
		}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return nil // base64 text
		}
		var items []json.RawMessage
		if err := json.Unmarshal(data, &items); err != nil {
			return err
		}
		for i, item := range items {
			if err := exact(item, t.Elem(), p, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func named(path string) string {
	if path == "" {
		return "the document"
	}
	return path
}

type fieldType struct {
	kind      reflect.Type
	omittable bool
}

// fieldsOf lists the fields of a struct by their names in JSON, those of
// embedded structs among them.
func fieldsOf(t reflect.Type) map[string]fieldType {
	fields := map[string]fieldType{}
	for f := range t.Fields() {
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case tag == "-" && options == "":
		case f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct:
			for name, inner := range fieldsOf(f.Type) {
				if _, ok := fields[name]; !ok {
					fields[name] = inner
				}
			}
		case !f.IsExported():
		default:
			if tag == "" {
				tag = f.Name
			}
			fields[tag] = fieldType{f.Type, strings.Contains(options, "omit")}
		}
	}
	return fields
}

// exactNames refuses members of an object that differ from a field of t only
// in the case of letters. Others are let pass: "consumers MUST ignore
// unrecognized fields" (in-toto attestation framework v1, parsing rules).
func exactNames(data []byte, t reflect.Type) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return err
	}
	fields := fieldsOf(t)
	for name := range members {
		for known := range fields {
			if name != known && strings.EqualFold(name, known) {
				return fmt.Errorf("field %q is written %q", name, known)
			}
		}
	}
	return nil
}
