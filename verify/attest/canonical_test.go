package attest

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
)

// Examples of RFC 8785: section 3.2.2 (sorting and strings) and appendix B
// (numbers).
func TestCanonicalForm(t *testing.T) {
	in := `{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}`
	want := `{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`
	got, err := Marshal(json.RawMessage(in))
	if err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	for bits, want := range map[uint64]string{
		0x0000000000000000: "0", 0x8000000000000000: "0", 0x0000000000000001: "5e-324", 0x7fefffffffffffff: "1.7976931348623157e+308",
		0x4340000000000000: "9007199254740992", 0x44b52d02c7e14af6: "1e+23", 0x444b1ae4d6e2ef50: "1e+21", 0x3eb0c6f7a0b5ed8d: "0.000001", 0x41b3de4355555554: "333333333.33333325",
	} {
		if got, err := Marshal([]float64{math.Float64frombits(bits)}); err != nil || string(got) != "["+want+"]" {
			t.Errorf("%x: %s, %v; want %s", bits, got, err, want)
		}
	}
}

func TestStrictJSON(t *testing.T) {
	for name, raw := range map[string]string{
		"duplicate key":         `{"a":1,"a":2}`,
		"duplicate key, nested": `{"a":[{"b":1,"c":{"d":1,"d":2}}]}`,
		"escaped duplicate":     `{"a":1,"\u0061":2}`,
		"something behind":      `{} {}`,
		"a comma behind":        `{},`,
		"nothing":               ``,
		"truncated":             `{"a":`,
		"not UTF-8":             "{\"a\":\"\xff\"}",
		"too deep":              strings.Repeat("[", MaxDepth+1) + strings.Repeat("]", MaxDepth+1),
		"NaN":                   `{"a":NaN}`,
	} {
		if err := CheckJSON([]byte(raw)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for _, raw := range []string{`{}`, `[]`, `1`, `"a"`, `null`, `{"a":{"a":{"a":1}},"b":["a","a"]}`, ` {"a":1} `, strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth)} {
		if err := CheckJSON([]byte(raw)); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestDiff(t *testing.T) {
	base := documents["environment"].value.(Environment)
	if c := Diff(base, base); len(c) != 0 {
		t.Errorf("no change: %v", c)
	}
	later := base
	later.RecordedAt = at.AddDate(1, 0, 0)
	if c := Diff(base, later); len(c) != 0 {
		t.Errorf("only recorded again: %v", c)
	}
	changed := base
	changed.Labels = map[string]string{"region": "us-east-1"}
	changed.Fingerprint = map[string]FingerprintField{"kernel": {"6.2.0", Observed, ""}, "cpu.flags": {"avx2", Observed, ""}, "gpu": {"", Unavailable, ""}}
	got := map[string]Trigger{}
	for _, c := range Diff(base, changed) {
		got[c.Field] = c.Trigger
	}
	if len(got) != 3 || got["label.region"] != Soft || got["kernel"] != Soft || got["cpu.flags"] != Hard {
		t.Errorf("changes %v", got)
	}
}

func FuzzParseStatement(f *testing.F) {
	raw, err := Marshal(documents["statement"].value)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseStatement(raw)
		if err != nil {
			return
		}
		if s.Type != StatementTypeV1 || len(s.Subject) == 0 || s.PredicateType == "" {
			t.Errorf("accepted %+v", s)
		}
		ParsePredicate(s)
	})
}

// What CheckJSON accepts, encoding/json reads, and the canonical form of it is
// read as the same.
func FuzzCheckJSON(f *testing.F) {
	f.Add([]byte(`{"a":[1,"b",null],"c":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if CheckJSON(raw) != nil {
			return
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil && !strings.Contains(err.Error(), "cannot unmarshal number") {
			t.Errorf("%q: %v", raw, err)
		}
	})
}
