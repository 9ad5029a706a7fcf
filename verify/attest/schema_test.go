package attest

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	generate "github.com/invopop/jsonschema"
	"github.com/opencontainers/go-digest"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "make the schemas and the vectors again")

var at = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func some(s string) Resource { return ResourceOf("application/vnd.example", digest.FromString(s)) }

func finding() Finding {
	return Finding{
		Claim: "at most 1 % of decisions differ", EnvironmentName: "prod-eu", Environment: some("environment"), Suite: some("suite"),
		Criteria: some("criteria"), Plan: some("plan"), Replay: some("replay"), Cases: 339,
		Metrics: []Metric{{Name: "decision flips", Comparator: "<=", Threshold: "0", Value: "0", SampleSize: 299, Passed: true}},
		Power:   OperatingCharacteristics{Margin: "0.01", Alpha: "0.05", Planned: 299, UpperBound: "0.00996925101", Beta: "0.2", DetectableRate: "0.00536823"},
	}
}

// pieces is a list for 200 bytes, 0 to 199, in pieces of one block.
func pieces() Pieces {
	data := make([]byte, 200)
	for i := range data {
		data[i] = byte(i)
	}
	p := Pieces{Blob: digest.FromBytes(data), Size: 200, PieceSize: 64}
	h := digest.SHA256.Hash()
	for len(data) > 64 {
		h.Write(data[:64])
		data = data[64:]
		state, err := stateOf(h)
		if err != nil {
			panic(err)
		}
		p.States = append(p.States, state...)
	}
	return p
}

// documents has a filled value of every document, and how it is read.
var documents = map[string]struct {
	value any
	read  func(raw []byte) error
}{
	"certificate": {Certificate{CertificateID: "urn:uuid:4d8b0e0a-0f3a-4a53-9a1e-7f3a6f6f0b11", Verdict: Certified, Finding: finding(), IssuedAt: at, Validity: Validity{at, at.AddDate(0, 3, 0)}, LogOrigin: "assay.log/test"}, readPredicate(PredicateCertificate)},
	"refusal":     {Refusal{RefusalID: "urn:uuid:4d8b0e0a-0f3a-4a53-9a1e-7f3a6f6f0b12", Verdict: Rejected, Model: some("model"), Reasons: []string{"31 of 299 decisions flip"}, IssuedAt: at, Finding: finding()}, readPredicate(PredicateRefusal)},
	"lineage": {Lineage{
		Parents:     []Parent{{Relation: RevisionOf, Repository: "credit/scorer", Version: "1.3.0", Resource: some("parent")}},
		Datasets:    []Dataset{{Relation: TrainedOn, How: "sha256 of the file", Resource: some("data")}},
		Code:        []Code{{Relation: BuiltFrom, Revision: "4f2c1d9", Resource: Resource{URI: "https://git.example.com/credit"}}},
		TrainingRun: &TrainingRun{ID: "run-7", URI: "https://example.com/run-7", StartedAt: at, FinishedAt: at}, RecordedAt: at,
	}, readPredicate(PredicateLineage)},
	"deployment": {Deployment{EnvironmentName: "prod-eu", Environment: some("environment"), Basis: "observed", StatedBy: "pipeline", From: at}, readPredicate(PredicateDeployment)},
	"approval":   {Approval{Person: "p-17", NameHash: "ab12", Meaning: "approval", Reason: "validated", ApprovedAt: at}, readPredicate(PredicateApproval)},
	"withdrawal": {Withdrawal{Reason: "recall", WithdrawnAt: at, StatedBy: "risk", Until: at.AddDate(0, 0, 7)}, readPredicate(PredicateWithdrawal)},
	"status-list": {StatusList{Version: 1, Issuer: "assay.log/test", LogSize: 42, Validity: Validity{at, at.Add(time.Hour)},
		Withdrawn: []StatusEntry{{string(digest.FromString("certificate")), at, at.AddDate(0, 0, 7)}}}, func(raw []byte) error {
		_, err := ParseStatusList(raw)
		return err
	}},
	"statement": {Statement{Type: StatementTypeV1, Subject: []Resource{some("model")}, PredicateType: PredicateSignature, Predicate: json.RawMessage("{}")}, func(raw []byte) error {
		_, err := ParseStatement(raw)
		return err
	}},
	"environment": {Environment{
		Name: "prod-eu", Target: Target{Protocol: "oip-v2-rest", URL: "http://10.0.0.1:8000", Model: "credit", Version: "1.4.0"}, Labels: map[string]string{"region": "eu-central-1"},
		Fingerprint: map[string]FingerprintField{"kernel": {"6.1.0", Observed, ""}, "gpu": {"", Unavailable, ""}}, RecordedAt: at,
	}, readDocument[Environment]()},
	"suite": {Suite{
		Name: "credit/suite:1", Model: some("model"), Protocol: "oip-v2-rest", Inputs: []TensorSpec{{"features", "FP32", []int64{-1, 8}}}, Outputs: []TensorSpec{{"probabilities", "FP32", []int64{-1, 2}}},
		Claim: 299, Border: 40, DataClassification: "synthetic", CreatedAt: at,
		Reference: Reference{ServedModel: "credit", ServedVersion: "1.4.0", Platform: "onnx", RecordedAt: at, Noise: map[string]float64{"probabilities": 1e-7}, Perturbations: []string{"asked again"}, Measured: 339},
	}, readDocument[Suite]()},
	"case": {Case{ID: "credit-0001", Stratum: StratumClaim, Label: "approve", Cluster: "applicant-7", Slice: map[string]string{"age": "30-60"}, Request: string(digest.FromString("request"))}, func(raw []byte) error {
		var c Case
		return Unmarshal(raw, &c)
	}},
	"text": {Text{ID: "loan-0001", Request: `{"messages":[{"role":"user","content":"May it be granted?"}],"logprobs":true}`, Usage: &TextUsage{5, 1}, Accepted: []AcceptedChoices{{"bf16", []TextChoice{{Text: "no", FinishReason: "stop"}}}}, Choices: []TextChoice{{
		Text: "yes", FinishReason: "stop", ToolCalls: []TextToolCall{{"decide", `{"b":1, "a":2}`}}, Tokens: []TextToken{{"yes", -0.25, []TextAlternative{{"yes", -0.25}, {"no", -1.5}}}},
	}}}, readDocument[Text]()},
	"criteria": {Criteria{
		Version: 1, Outputs: []OutputCriteria{{Output: "probabilities", Absolute: 1e-5, Relative: 1.3e-6, NoiseFactor: 8, Decision: Decision{Kind: DecideThreshold, Labels: []string{"decline", "approve"}, Index: 1, Threshold: 0.5}}},
		Plan: BinomialPlan{Margin: 0.01, Alpha: 0.05, Beta: 0.2, N: 299},
	}, readDocument[Criteria]()},
	"plan": {Plan{
		Model: some("model"), Suite: some("suite"), Criteria: some("criteria"), EnvironmentName: "prod-eu", Environment: some("environment"),
		Target: Target{Protocol: "oip-v2-rest", URL: "http://10.0.0.1:8000", Model: "credit"}, Cases: 339, Order: string(digest.FromString("order")),
		Concurrency: 1, TimeoutMillis: 30000, PlannedAt: at, Deadline: at.AddDate(0, 0, 1),
	}, readDocument[Plan]()},
	"observation": {Observation{Case: "credit-0001", Attempt: 1, Request: string(digest.FromString("request")), SentAt: at, ReceivedAt: at.Add(time.Millisecond), Status: 200, Response: []byte("{}")}, readDocument[Observation]()},
	"replay": {Replay{Plan: some("plan"), Model: some("model"), Environment: some("environment"), StartedAt: at, FinishedAt: at.Add(time.Second), Observations: 339,
		Preflight: []PreflightCheck{{"answers", true, "gomlx"}}}, readDocument[Replay]()},
	"pieces": {pieces(), readDocument[Pieces]()},
	"report": {Report{
		Verdict: Rejected, Reasons: []string{"31 of 299 decisions flip"}, Claim: "not equivalent", Difference: "31 of 299 decisions flip, 26 of them to approve", EnvironmentName: "edge",
		Environment: some("environment"), Model: some("model"), Suite: some("suite"), Criteria: some("criteria"), Plan: some("plan"), Cases: Counts{Claim: 299, Border: 40, Compared: 339, Elements: 678},
		Flips: []FlipCount{{"decline", "approve", 26}}, Slices: []SliceCount{{"age=30-60", 200, 20}}, Numerics: []NumericSummary{{Output: "probabilities", Elements: 678, MaxAbsolute: "0.28"}},
		Errors: map[string]int{}, Metrics: finding().Metrics, Power: finding().Power, Examples: []Example{{"credit-0001", "decision flips", "decline becomes approve"}},
		Sampled:  &SampledSummary{Unit: UnitTokens, Prompts: 30, Samples: 8, References: []SampledReference{{Name: ReferenceName, Distance: "0.01"}}, Nearest: ReferenceName, Finish: []FinishCount{{"stop", 240, 239}}},
		Accuracy: &AccuracySummary{Cases: 299, Clusters: 75, Reference: 250, Environment: 240, Worse: 14, Better: 4, Loss: "0.0334448161", P: "0.0308837891"},
		Clusters: &ClusterSummary{Clusters: 75, Cases: 299, Largest: 4, Flipping: 9, FlipRate: "0.04"},
	}, func(raw []byte) error {
		var r Report
		return Unmarshal(raw, &r)
	}},
}

func readPredicate(predicateType string) func([]byte) error {
	return func(raw []byte) error {
		_, err := ParsePredicate(Statement{PredicateType: predicateType, Predicate: raw})
		return err
	}
}

func readDocument[T interface{ Validate() error }]() func([]byte) error {
	return func(raw []byte) error {
		var v T
		if err := Unmarshal(raw, &v); err != nil {
			return err
		}
		return v.Validate()
	}
}

// The committed schemas are those of the types.
func TestSchemas(t *testing.T) {
	for name, d := range documents {
		r := generate.Reflector{DoNotReference: true, Anonymous: true}
		s := r.Reflect(d.value)
		s.Title = "Assay " + name
		raw, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, '\n')
		file := filepath.Join("schema", name+".schema.json")
		if *update {
			if err := os.WriteFile(file, raw, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if kept, err := Schema(name); err != nil || !bytes.Equal(kept, raw) {
			t.Errorf("%s is not the schema of the type (%v): run go test ./verify/attest -run 'Schemas|Vectors' -update", file, err)
		}
	}
}

// vectors makes, from a filled value, what every reader must accept and what
// every reader must refuse. Those whose name begins with "syntax-" are beyond
// what a JSON Schema can say.
func vectors(t *testing.T, value any) map[string][]byte {
	t.Helper()
	valid, err := Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(valid, &fields); err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{"valid": valid}
	edit := func(name string, change func(m map[string]any)) {
		m := maps.Clone(fields)
		change(m)
		raw, err := Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out["invalid-"+name] = raw
	}
	keys := slices.Sorted(maps.Keys(fields))
	edit("unknown-field", func(m map[string]any) { m["unlessOtherwiseAgreed"] = true })
	edit("wrong-type", func(m map[string]any) { m[keys[0]] = []any{[]any{1}} })
	first := keys[0]
	out["invalid-syntax-duplicate-key"] = bytes.Replace(valid, []byte(`{"`+first+`":`), []byte(`{"`+first+`":null,"`+first+`":`), 1)
	out["invalid-syntax-truncated"] = valid[:len(valid)-1]
	out["invalid-syntax-second-document"] = append(bytes.Clone(valid), "{}"...)
	return out
}

func TestVectors(t *testing.T) {
	for name, d := range documents {
		dir := filepath.Join("testdata", "vectors", name)
		if *update {
			os.RemoveAll(dir)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for v, raw := range vectors(t, d.value) {
				if err := os.WriteFile(filepath.Join(dir, v+".json"), raw, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		raw, err := Schema(name)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		if err := c.AddResource(name, parsed); err != nil {
			t.Fatal(err)
		}
		schema, err := c.Compile(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil || len(files) < 6 {
			t.Fatalf("%s has %d vectors (%v)", name, len(files), err)
		}
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			valid := filepath.Base(f) == "valid.json"
			if err := d.read(raw); (err == nil) != valid {
				t.Errorf("%s: our reader says %v", f, err)
			}
			if strings.Contains(f, "syntax-") {
				continue
			}
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
			if err == nil {
				err = schema.Validate(v)
			}
			if (err == nil) != valid {
				t.Errorf("%s: the schema says %v", f, err)
			}
		}
	}
}

// A reader in another language comes to the same of every vector.
func TestVectorsInPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		// CI has it, by 'make deps', and so nothing is left out there. Who works on
		// something else without it can run all the rest.
		if os.Getenv("CI") != "" {
			t.Fatal("python3 is not installed: run 'make deps'")
		}
		t.Skip("python3 is not installed: run 'make deps'")
	}
	out, err := exec.Command(python, "testdata/read_vectors.py", "schema", "testdata/vectors").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if want := fmt.Sprintf("%d documents", len(documents)); !strings.Contains(string(out), want) {
		t.Errorf("it read %s, want %s", out, want)
	}
}

// Whatever required thing is missing, the predicate is refused.
func TestRequiredFields(t *testing.T) {
	optional := map[string][]string{"certificate": {"logOrigin"}, "lineage": {"code", "datasets", "parents", "trainingRun"}, "approval": {"nameHash"}, "withdrawal": {"until"}}
	for _, name := range []string{"certificate", "refusal", "lineage", "deployment", "approval", "withdrawal"} {
		d := documents[name]
		raw, _ := Marshal(d.value)
		var fields map[string]any
		json.Unmarshal(raw, &fields)
		for k := range fields {
			less := maps.Clone(fields)
			delete(less, k)
			raw, _ := Marshal(less)
			if err := d.read(raw); (err == nil) != slices.Contains(optional[name], k) {
				t.Errorf("%s without %s: %v", name, k, err)
			}
		}
	}
	if _, err := NewStatement(digest.FromString("m"), Certificate{Verdict: Rejected}); err == nil {
		t.Error("a rejection was certified")
	}
}

// Which of several withdrawals holds, over time.
func TestInForce(t *testing.T) {
	h := func(n int) time.Time { return at.Add(time.Duration(n) * time.Hour) }
	good := Withdrawal{WithdrawnAt: h(1)}
	from := func(a, b int) Withdrawal { return Withdrawal{WithdrawnAt: h(a), Until: h(b)} }
	for name, tc := range map[string]struct {
		list []Withdrawal
		want map[int]int // by hour
	}{
		"none":                       {nil, map[int]int{0: -1, 9: -1}},
		"for good":                   {[]Withdrawal{good}, map[int]int{0: 0, 1: 0, 9: 0}},
		"suspended":                  {[]Withdrawal{from(1, 5)}, map[int]int{0: 0, 1: 0, 4: 0, 5: -1, 9: -1}},
		"lifted":                     {[]Withdrawal{from(1, 5), from(3, 3)}, map[int]int{1: 0, 2: 0, 3: -1, 4: -1, 5: -1}},
		"lifted, read the other way": {[]Withdrawal{from(3, 3), from(1, 5)}, map[int]int{1: 1, 2: 1, 3: -1, 5: -1}},
		"prolonged":                  {[]Withdrawal{from(1, 3), from(2, 6)}, map[int]int{1: 1, 2: 1, 5: 1, 6: -1}},
		"shortened":                  {[]Withdrawal{from(1, 8), from(2, 4)}, map[int]int{2: 1, 3: 1, 4: -1, 7: -1}},
		"two at once":                {[]Withdrawal{from(1, 3), from(1, 1), from(1, 5)}, map[int]int{1: 2, 4: 2, 5: -1}},
		"lifted, and again":          {[]Withdrawal{from(1, 5), from(2, 2), from(3, 6)}, map[int]int{3: 2, 5: 2, 6: -1}},
		"for good is not lifted":     {[]Withdrawal{good, from(2, 2)}, map[int]int{2: 0, 9: 0}},
		"and not shortened":          {[]Withdrawal{from(2, 2), good}, map[int]int{2: 1, 9: 1}},
	} {
		for hour, want := range tc.want {
			if got := InForce(tc.list, h(hour)); got != want {
				t.Errorf("%s, at hour %d: %d holds, want %d", name, hour, got, want)
			}
		}
	}
	for n, w := range []Withdrawal{from(1, 1), from(1, 2)} {
		w.Reason, w.StatedBy = "x", "y"
		if err := w.Validate(); err != nil {
			t.Errorf("%d: %v", n, err)
		}
	}
	w := from(2, 1)
	w.Reason, w.StatedBy = "x", "y"
	if err := w.Validate(); err == nil {
		t.Error("a suspension that ends before it begins is valid")
	}
}
