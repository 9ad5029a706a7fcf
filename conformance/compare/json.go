package compare

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var inf = math.Inf(1)

// JSON reports whether two JSON documents say the same: the same canonical form
// (RFC 8785), or with slack above zero the same but for numbers that differ by
// at most that. where says the first place that differs.
func JSON(want, got []byte, slack float64) (same bool, where string, err error) {
	w, err := jsoncanonicalizer.Transform(want)
	if err != nil {
		return false, "", fmt.Errorf("the reference is no JSON: %w", err)
	}
	g, err := jsoncanonicalizer.Transform(got)
	if err != nil {
		return false, "", fmt.Errorf("the answer is no JSON: %w", err)
	}
	if bytes.Equal(w, g) {
		return true, "", nil
	}
	a, err := number(w)
	if err != nil {
		return false, "", err
	}
	b, err := number(g)
	if err != nil {
		return false, "", err
	}
	where = parts(a, b, slack, "$")
	return where == "", where, nil
}

func number(raw []byte) (v any, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	err = dec.Decode(&v)
	return v, err
}

// parts returns the path of the first part in which two values differ.
func parts(a, b any, slack float64, path string) string {
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok {
			return path
		}
		for _, k := range keys(x, y) {
			v, in := x[k]
			w, also := y[k]
			if in != also {
				return path + "." + k
			}
			if at := parts(v, w, slack, path+"."+k); at != "" {
				return at
			}
		}
		return ""
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return path
		}
		for i := range x {
			if at := parts(x[i], y[i], slack, path+"["+strconv.Itoa(i)+"]"); at != "" {
				return at
			}
		}
		return ""
	case json.Number:
		y, ok := b.(json.Number)
		if !ok {
			return path
		}
		v, err1 := x.Float64()
		w, err2 := y.Float64()
		if err1 != nil || err2 != nil || !(math.Abs(v-w) <= slack) {
			return path
		}
		return ""
	}
	if a != b {
		return path
	}
	return ""
}

// A ToolCall is a function that an answer asks to call.
type ToolCall struct {
	Name      string
	Arguments string // JSON
}

// A ToolDifference compares the tool calls of two answers.
type ToolDifference struct {
	Trigger   bool // one calls tools and the other does not
	Names     bool // not the same functions in the same order
	Arguments int  // calls with other arguments
	Invalid   int  // calls whose arguments are no JSON, or break their schema
	Calls     int  // of the candidate: whoever counts shares of it must say so
}

// Same reports whether nothing differs.
func (d ToolDifference) Same() bool {
	return !d.Trigger && !d.Names && d.Arguments == 0 && d.Invalid == 0
}

// ToolCalls compares. schemas are those of the arguments by function; a call of
// a function without one is invalid, as it was not offered.
func ToolCalls(want, got []ToolCall, schemas map[string]*jsonschema.Schema, slack float64) ToolDifference {
	d := ToolDifference{Trigger: (len(want) > 0) != (len(got) > 0), Names: len(want) != len(got), Calls: len(got)}
	for i, c := range got {
		schema := schemas[c.Name]
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(c.Arguments)))
		if err != nil || schema == nil || schema.Validate(v) != nil {
			d.Invalid++
		}
		if i >= len(want) {
			continue
		}
		if c.Name != want[i].Name {
			d.Names = true
			continue
		}
		if same, _, err := JSON([]byte(want[i].Arguments), []byte(c.Arguments), slack); err != nil || !same {
			d.Arguments++
		}
	}
	return d
}

// Schema compiles a JSON Schema.
func Schema(raw []byte) (*jsonschema.Schema, error) {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema", v); err != nil {
		return nil, err
	}
	return c.Compile("schema")
}

// A Usage counts tokens. A count that was not stated is negative.
type Usage struct{ Prompt, Completion int }

// Usages compares what was counted, "" if nothing differs. The prompt's count
// is exact: it is a fingerprint of tokenizer and template, and of a context that
// was cut. A count that one side does not state is a difference.
func Usages(want, got Usage) string {
	switch {
	case want.Prompt < 0 || got.Prompt < 0:
		return "prompt tokens are not counted"
	case want.Prompt != got.Prompt:
		return fmt.Sprintf("the prompt has %d tokens, not %d", got.Prompt, want.Prompt)
	case want.Completion < 0 || got.Completion < 0:
		return "completion tokens are not counted"
	case want.Completion != got.Completion:
		return fmt.Sprintf("the completion has %d tokens, not %d", got.Completion, want.Completion)
	}
	return ""
}

// keys are those of either object, in order.
func keys(a, b map[string]any) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}
