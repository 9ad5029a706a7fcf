package attest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

// Two readers of the same bytes must not see two documents. Of these,
// encoding/json alone would read something that others do not.
func TestNoTwoReadings(t *testing.T) {
	for name, raw := range map[string]string{
		"two fields but for case":       `{"reason":"recall","Reason":"none","withdrawnAt":"2026-03-01T12:00:00Z","statedBy":"risk"}`,
		"a field in capitals":           `{"REASON":"recall","withdrawnAt":"2026-03-01T12:00:00Z","statedBy":"risk"}`,
		"a field in letters like it":    `{"reaſon":"recall","withdrawnAt":"2026-03-01T12:00:00Z","statedBy":"risk"}`,
		"null for a text":               `{"reason":null,"withdrawnAt":"2026-03-01T12:00:00Z","statedBy":"risk"}`,
		"null for a time":               `{"reason":"recall","withdrawnAt":null,"statedBy":"risk"}`,
		"null for the whole":            `null`,
		"a list for the whole":          `[]`,
		"a second reason, escaped":      `{"reason":"recall","\u0072eason":"none","withdrawnAt":"2026-03-01T12:00:00Z","statedBy":"risk"}`,
		"a time without a zone":         `{"reason":"recall","withdrawnAt":"2026-03-01T12:00:00","statedBy":"risk"}`,
		"a time that is no time at all": `{"reason":"recall","withdrawnAt":"2026-02-30T12:00:00Z","statedBy":"risk"}`,
	} {
		var w Withdrawal
		if err := Unmarshal([]byte(raw), &w); err == nil {
			t.Errorf("%s is read as %+v", name, w)
		}
	}
	var nested struct {
		List []Parent           `json:"list"`
		Map  map[string]*Parent `json:"map"`
	}
	for _, raw := range []string{
		`{"list":[{"relation":"revisionOf","Digest":{}}],"map":{}}`, `{"list":[],"map":{"a":{"URI":"x"}}}`, `{"list":[null],"map":{}}`,
	} {
		if err := Unmarshal([]byte(raw), &nested); err == nil {
			t.Errorf("%s is read as %+v", raw, nested)
		}
	}
	if err := Unmarshal([]byte(`{"list":null,"map":{"a":null}}`), &nested); err != nil {
		t.Errorf("empty lists, as Go writes them: %v", err)
	}
	if err := Unmarshal(fmt.Appendf(nil, `{"list":[],"map":{}%s}`, strings.Repeat(" ", MaxDocument)), &nested); err == nil {
		t.Error("a document over the limit is read")
	}
}

// A statement speaks of one thing for every reader.
func TestSubjects(t *testing.T) {
	one, two := digest.FromString("one"), digest.FromString("two")
	with := func(subject string) []byte {
		return fmt.Appendf(nil, `{"_type":%q,"subject":[%s],"predicateType":%q,"predicate":{}}`, StatementTypeV1, subject, PredicateSignature)
	}
	plain := fmt.Sprintf(`{"digest":{"sha256":%q}}`, one.Encoded())
	s, err := ParseStatement(with(plain))
	if err != nil || !s.Names(one) || s.Names(two) {
		t.Fatalf("%+v, %v", s, err)
	}
	// "-a key=value" of cosign sign adds annotations.
	if _, err := ParseStatement(with(fmt.Sprintf(`{"digest":{"sha256":%q},"annotations":{"a":"b"}}`, one.Encoded()))); err != nil {
		t.Errorf("annotations: %v", err)
	}
	many := strings.Repeat(plain+",", MaxSubjects) + plain
	digests := make([]string, maxDigests+1)
	for i := range digests {
		digests[i] = fmt.Sprintf(`"alg%d":"00"`, i)
	}
	for name, raw := range map[string][]byte{
		"two digests in one subject":   with(fmt.Sprintf(`{"digest":{"sha256":%q},"Digest":{"sha256":%q}}`, one.Encoded(), two.Encoded())),
		"no digest":                    with(`{"name":"model"}`),
		"null":                         with(`null`),
		"a digest in capitals":         with(strings.ToUpper(plain)),
		"a digest in capital letters":  with(fmt.Sprintf(`{"digest":{"sha256":%q}}`, strings.ToUpper(one.Encoded()))),
		"a short digest":               with(fmt.Sprintf(`{"digest":{"sha256":%q}}`, one.Encoded()[1:])),
		"a weak algorithm alone":       with(`{"digest":{"sha1":"da39a3ee5e6b4b0d3255bfef95601890afd80709"}}`),
		"too many subjects":            with(many),
		"too many digests":             with(`{"digest":{` + strings.Join(digests, ",") + `}}`),
		"a predicate that is a list":   []byte(strings.Replace(string(with(plain)), `"predicate":{}`, `"predicate":[]`, 1)),
		"a predicate that is null":     []byte(strings.Replace(string(with(plain)), `"predicate":{}`, `"predicate":null`, 1)),
		"two predicates but for case":  []byte(strings.Replace(string(with(plain)), `"predicate":{}`, `"predicate":{},"Predicate":{"a":1}`, 1)),
		"another field":                []byte(strings.Replace(string(with(plain)), `"predicate":{}`, `"predicate":{},"expires":"never"`, 1)),
		"an unknown in-toto statement": []byte(strings.Replace(string(with(plain)), "Statement/v1", "Statement/v0.2", 1)),
		"an earlier one, of ours":      []byte(strings.NewReplacer("Statement/v1", "Statement/v0.1", PredicateSignature, PredicateWithdrawal).Replace(string(with(plain)))),
	} {
		if s, err := ParseStatement(raw); err == nil {
			t.Errorf("%s: read as %+v", name, s)
		}
	}
	if s, err := ParseStatement([]byte(strings.Replace(string(with(plain)), "Statement/v1", "Statement/v0.1", 1))); err != nil || s.Type != StatementTypeV01 {
		t.Errorf("what cosign attest writes: %+v, %v", s, err)
	}
	if _, err := NewStatement("sha256:short", documents["withdrawal"].value.(Withdrawal)); err == nil {
		t.Error("a statement about a malformed digest was made")
	}
}

// paths lists the fields of a document, inner ones by their path.
func paths(m map[string]any, at []string) (list [][]string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		path := append(slices.Clone(at), k)
		list = append(list, path)
		if inner, ok := m[k].(map[string]any); ok {
			list = append(list, paths(inner, path)...)
		}
	}
	return list
}

// Take any one field out of a certificate or refusal, at any depth: it is
// refused, or the field is one that may be absent.
func TestMeasuredIsNeverMissing(t *testing.T) {
	for _, name := range []string{"certificate", "refusal"} {
		raw, err := Marshal(documents[name].value)
		if err != nil {
			t.Fatal(err)
		}
		var whole map[string]any
		if err := json.Unmarshal(raw, &whole); err != nil {
			t.Fatal(err)
		}
		all := paths(whole, nil)
		if len(all) < 30 {
			t.Fatalf("%s has %d fields", name, len(all))
		}
		for _, path := range all {
			var m map[string]any
			if err := json.Unmarshal(raw, &m); err != nil {
				t.Fatal(err)
			}
			inner := m
			for _, k := range path[:len(path)-1] {
				inner = inner[k].(map[string]any)
			}
			last := path[len(path)-1]
			delete(inner, last)
			less, err := Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			// mediaType and the log's origin help a reader find things, and
			// say nothing of what was measured.
			may := last == "mediaType" || last == "logOrigin"
			if err := documents[name].read(less); (err == nil) != may {
				t.Errorf("%s without %s: %v", name, strings.Join(path, "."), err)
			}
		}
	}
}

func TestMetricsHold(t *testing.T) {
	good := documents["certificate"].value.(Certificate)
	for name, tc := range map[string]struct {
		m  Metric
		ok bool
	}{
		"at most":                  {Metric{"m", "<=", "0.01", "0.00996925101", 299, true}, true},
		"at most, equal":           {Metric{"m", "<=", "0", "0", 0, true}, true},
		"at least":                 {Metric{"m", ">=", "0.9", "1", 10, true}, true},
		"equal":                    {Metric{"m", "==", "1e-07", "1e-07", 10, true}, true},
		"did not pass":             {Metric{"m", "<=", "0", "0", 10, false}, false},
		"passed against its value": {Metric{"m", "<=", "0", "31", 299, true}, false},
		"no value":                 {Metric{"m", "<=", "0", "", 299, true}, false},
		"no threshold":             {Metric{"m", "<=", "", "0", 299, true}, false},
		"NaN":                      {Metric{"m", "<=", "0", "NaN", 299, true}, false},
		"infinite threshold":       {Metric{"m", "<=", "+Inf", "31", 299, true}, false},
		"hexadecimal":              {Metric{"m", "<=", "0x10", "1", 299, true}, false},
		"out of range":             {Metric{"m", "<=", "1e999", "1", 299, true}, false},
		"unknown comparator":       {Metric{"m", "~", "0", "0", 299, true}, false},
		"no name":                  {Metric{"", "<=", "0", "0", 299, true}, false},
		"less than no sample":      {Metric{"m", "<=", "0", "0", -1, true}, false},
	} {
		c := good
		c.Metrics = []Metric{tc.m}
		if err := c.Validate(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Only a passed judgement is certified, and only a failed one refused.
func TestVerdicts(t *testing.T) {
	c, r := documents["certificate"].value.(Certificate), documents["refusal"].value.(Refusal)
	for _, v := range []Verdict{Certified, Rejected, Inconclusive, "", "certified", "PASS"} {
		c.Verdict, r.Verdict = v, v
		if err := c.Validate(); (err == nil) != (v == Certified) {
			t.Errorf("a certificate with verdict %q: %v", v, err)
		}
		if err := r.Validate(); (err == nil) != (v == Rejected || v == Inconclusive) {
			t.Errorf("a refusal with verdict %q: %v", v, err)
		}
	}
	c.Verdict = Certified
	c.Validity = Validity{at, at}
	if err := c.Validate(); err == nil {
		t.Error("a certificate for no time at all")
	}
	if v := (Validity{at, at.AddDate(0, 0, 1)}); !v.Contains(at) || v.Contains(at.AddDate(0, 0, 1)) {
		t.Error("a window is notBefore <= t < notAfter")
	}
}

// What the canonical form would round is refused, and all else stays the
// number it was.
func TestIntegersAreExact(t *testing.T) {
	for _, n := range []string{"9007199254740993", "-9007199254740993", "12345678901234567890", "9223372036854775807"} {
		if got, err := Marshal(map[string]any{"n": json.RawMessage(n)}); err == nil {
			t.Errorf("%s was written as %s", n, got)
		}
	}
	for _, n := range []any{9007199254740992, -9007199254740992, 1.2345678901234568e20, 1e15, 123456789012345, "9007199254740993", `\"9007199254740993`} {
		got, err := Marshal([]any{n})
		if err != nil {
			t.Errorf("%v: %v", n, err)
			continue
		}
		var back []any
		if err := json.Unmarshal(got, &back); err != nil || fmt.Sprint(back[0]) != fmt.Sprint(n) && back[0] != toFloat(n) {
			t.Errorf("%v became %s", n, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64().Draw(t, "n")
		raw, err := Marshal([]int64{n})
		var back []int64
		if err == nil && (json.Unmarshal(raw, &back) != nil || back[0] != n) {
			t.Fatalf("%d became %s", n, raw)
		}
		if err != nil && n < 1<<53 && n > -1<<53 {
			t.Fatalf("%d: %v", n, err)
		}
	})
}

func toFloat(n any) any {
	if i, ok := n.(int); ok {
		return float64(i)
	}
	return n
}

// The canonical form is a fixed point, and does not depend on how its input
// was laid out.
func TestCanonicalIsStable(t *testing.T) {
	for name, d := range documents {
		raw, err := Marshal(d.value)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		loose, err := json.MarshalIndent(v, " ", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Marshal(json.RawMessage(loose)); err != nil || string(again) != string(raw) {
			t.Errorf("%s: %s, %v; want %s", name, again, err, raw)
		}
	}
	if _, err := Marshal(func() {}); err == nil {
		t.Error("a function has a canonical form")
	}
}

// A fingerprint field must not hide the change of another part.
func TestFingerprintNames(t *testing.T) {
	good := documents["environment"].value.(Environment)
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"", "name", "target.model", "target.url", "label.region"} {
		e := good
		e.Fingerprint = map[string]FingerprintField{k: {"x", Declared, ""}}
		if err := e.Validate(); err == nil {
			t.Errorf("a fingerprint field is called %q", k)
		}
	}
	for name, f := range map[string]FingerprintField{
		"observed, empty": {"", Observed, ""}, "declared, empty": {"", Declared, ""}, "attested, empty": {"", Attested, ""},
		"not to be had, and there": {"x", Unavailable, ""}, "known in no way": {"x", "", ""}, "known in a new way": {"x", "guessed", ""},
		"known, and with a reason why not": {"x", Observed, "no tool"},
	} {
		e := good
		e.Fingerprint = map[string]FingerprintField{"cpu": f}
		if err := e.Validate(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// Every part of an environment is compared: change any one, and Diff shows it,
// the same in both directions; what nobody has called soft is hard.
func TestDiffSeesEverything(t *testing.T) {
	base := documents["environment"].value.(Environment)
	for field, tc := range map[string]struct {
		edit func(e *Environment)
		want Trigger
	}{
		"name":            {func(e *Environment) { e.Name = "other" }, Hard},
		"target.protocol": {func(e *Environment) { e.Target.Protocol = "oip-v2-grpc" }, Hard},
		"target.url":      {func(e *Environment) { e.Target.URL = "http://10.0.0.2" }, Hard},
		"target.model":    {func(e *Environment) { e.Target.Model = "other" }, Hard},
		"target.version":  {func(e *Environment) { e.Target.Version = "" }, Hard},
		"label.region":    {func(e *Environment) { e.Labels = nil }, Soft},
		"label.residency": {func(e *Environment) { e.Labels["residency"] = "EU" }, Hard},
		"kernel":          {func(e *Environment) { e.Fingerprint["kernel"] = FingerprintField{"6.1.1", Observed, ""} }, Soft},
		"gpu":             {func(e *Environment) { delete(e.Fingerprint, "gpu") }, Hard},
		"cpu.flags":       {func(e *Environment) { e.Fingerprint["cpu.flags"] = FingerprintField{"avx512", Observed, ""} }, Hard},
	} {
		changed := base
		changed.Labels, changed.Fingerprint = maps.Clone(base.Labels), maps.Clone(base.Fingerprint)
		tc.edit(&changed)
		there, back := Diff(base, changed), Diff(changed, base)
		if len(there) != 1 || there[0].Field != field || there[0].Trigger != tc.want || there[0].Why == "" {
			t.Errorf("%s: %+v", field, there)
			continue
		}
		if len(back) != 1 || back[0].Old != there[0].New || back[0].New != there[0].Old {
			t.Errorf("%s, the other way: %+v", field, back)
		}
	}
	// How a thing is known is part of what is known.
	less := base
	less.Fingerprint = maps.Clone(base.Fingerprint)
	less.Fingerprint["kernel"] = FingerprintField{"6.1.0", Declared, ""}
	if c := Diff(base, less); len(c) != 1 {
		t.Errorf("observed has become declared: %+v", c)
	}
}

func FuzzParsePredicate(f *testing.F) {
	types := []string{PredicateCertificate, PredicateRefusal, PredicateLineage, PredicateDeployment, PredicateApproval, PredicateWithdrawal}
	for i, name := range []string{"certificate", "refusal", "lineage", "deployment", "approval", "withdrawal"} {
		raw, err := Marshal(documents[name].value)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(i, raw)
	}
	f.Fuzz(func(t *testing.T, i int, raw []byte) {
		if i < 0 || i >= len(types) {
			return
		}
		p, err := ParsePredicate(Statement{PredicateType: types[i], Predicate: raw})
		if err != nil {
			return
		}
		if p.PredicateType() != types[i] || p.Validate() != nil {
			t.Fatalf("accepted %+v", p)
		}
		// What was read is written, and read again, as the same.
		once, err := Marshal(p)
		if err != nil {
			return // a time or an integer that canonical JSON cannot hold
		}
		again, err := ParsePredicate(Statement{PredicateType: types[i], Predicate: once})
		if err != nil {
			t.Fatalf("%s is not read again: %v", once, err)
		}
		if twice, err := Marshal(again); err != nil || string(once) != string(twice) {
			t.Errorf("%s became %s (%v)", once, twice, err)
		}
	})
}
