package attest

import (
	"math"
	"strings"
	"testing"
)

func TestTextValidate(t *testing.T) {
	valid := func() Text {
		return Text{ID: "a", Request: `{"prompt":"x"}`, Choices: []TextChoice{{Text: "y", Tokens: []TextToken{{Token: "y", Logprob: -1}}}}, Usage: &TextUsage{1, 1}}
	}
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Text){
		"id is missing":                func(x *Text) { x.ID = "" },
		"request is no JSON object":    func(x *Text) { x.Request = `["x"]` },
		"duplicate key":                func(x *Text) { x.Request = `{"prompt":"x","prompt":"y"}` },
		"no golden answer":             func(x *Text) { x.Choices = nil },
		"has log probability NaN":      func(x *Text) { x.Choices[0].Tokens[0].Logprob = math.NaN() },
		"has log probability 0.5":      func(x *Text) { x.Choices[0].Tokens[0].Logprob = 0.5 },
		"its usage is negative":        func(x *Text) { x.Usage.Prompt = -1 },
		"something follows the docume": func(x *Text) { x.Request += "{}" },
	} {
		x := valid()
		change(&x)
		if err := x.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The request is kept as it was written, member for member and space for space.
func TestTextKeepsItsRequest(t *testing.T) {
	want := Text{ID: "a", Request: `{"tools": [{"z":1, "a":2}],  "messages":[]}`, Choices: []TextChoice{{Text: "y"}}}
	raw, err := Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Text
	if err := Unmarshal(raw, &got); err != nil || got.Request != want.Request {
		t.Errorf("%q, %v", got.Request, err)
	}
}

func TestTextCriteriaValidate(t *testing.T) {
	valid := func() Criteria {
		return Criteria{Version: 2, Outputs: []OutputCriteria{}, Noise: &NoiseCriteria{Ratio: 4}, Text: &TextCriteria{Decision: DecideAnswer, Pattern: `= (\d+)`},
			Limits: []Limit{{Measure: MeasureEdit, Margin: 0.1}, {Measure: MeasureSlow, Margin: 10}}, Plan: BinomialPlan{Margin: 0.01, Alpha: 0.05, Beta: 0.2, N: 299}}
	}
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Criteria){
		"text is of version 2":        func(c *Criteria) { c.Version, c.Noise, c.Limits = 1, nil, nil },
		"no outputs beside it":        func(c *Criteria) { c.Outputs = []OutputCriteria{{Output: "p"}} },
		"is none of exact-text":       func(c *Criteria) { c.Text.Decision = "vibes" },
		"has 2 groups":                func(c *Criteria) { c.Text.Pattern = `(a)(b)` },
		"has 0 groups":                func(c *Criteria) { c.Text.Pattern = `a` },
		"missing closing":             func(c *Criteria) { c.Text.Pattern = `(a` },
		"needs a pattern or":          func(c *Criteria) { c.Text.Pattern = "" },
		"and not both":                func(c *Criteria) { c.Text.Pointer = "/a" },
		"begins with a slash":         func(c *Criteria) { c.Text.Pattern, c.Text.Pointer = "", "a" },
		"not for exact-text":          func(c *Criteria) { c.Text.Decision = DecideText },
		"tie must not be":             func(c *Criteria) { c.Text.Tie = -1 },
		`"bias" is none of`:           func(c *Criteria) { c.Limits[0].Measure = MeasureBias },
		"names no output":             func(c *Criteria) { c.Limits[0].Output = "text" },
		"without a positive margin":   func(c *Criteria) { c.Limits[0].Margin = 0 },
		"no output is compared":       func(c *Criteria) { c.Text = nil },
		"version 2 needs noise.ratio": func(c *Criteria) { c.Noise = nil },
	} {
		c := valid()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	c := valid()
	c.Text, c.Outputs = nil, []OutputCriteria{{Output: "p", Decision: Decision{Kind: DecideLabel, Labels: []string{"a", "b"}}}}
	if err := c.Validate(); err == nil {
		t.Error("a suite of tensors has a limit on an edit distance")
	}
}
