package conformance

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

func TestDraft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "draft")
	d := Draft{Version: 1, Name: "d", DataClassification: "synthetic", Border: 2, Criteria: criteria(59, 0)}
	if err := CreateDraft(dir, d); err != nil {
		t.Fatal(err)
	}
	if err := CreateDraft(dir, d); err == nil {
		t.Error("a draft is made over another")
	}
	if _, cases, err := OpenDraft(dir); err != nil || cases != nil {
		t.Errorf("a new draft: %v %v", cases, err)
	}
	list := candidates(10)
	for _, part := range [][]Candidate{list[:4], list[4:]} {
		if _, _, err := AddCases(dir, part, Added{From: "test", Notes: []string{"n"}}); err != nil {
			t.Fatal(err)
		}
	}
	got, cases, err := OpenDraft(dir)
	if err != nil || len(cases) != 10 || len(got.Added) != 2 || got.Added[1].Cases != 6 {
		t.Fatalf("%+v %v", got, err)
	}
	before, err := os.ReadFile(filepath.Join(dir, fileDraftCases))
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(c *Candidate){
		"an id that is there":  func(c *Candidate) { c.ID = list[3].ID },
		"no id":                func(c *Candidate) { c.ID = "" },
		"a slash in the id":    func(c *Candidate) { c.ID = "a/b" },
		"no inputs":            func(c *Candidate) { c.Inputs = nil },
		"another input":        func(c *Candidate) { c.Inputs = map[string]CandidateTensor{"x": c.Inputs["features"]} },
		"one more input":       func(c *Candidate) { c.Inputs["x"] = c.Inputs["features"] },
		"another stratum":      func(c *Candidate) { c.Stratum = "middle" },
		"a shape that is none": func(c *Candidate) { c.Inputs["features"] = CandidateTensor{"FP32", []int64{-1, 2}, nil} },
		"too few numbers":      func(c *Candidate) { c.Inputs["features"] = CandidateTensor{"FP32", []int64{1, 2}, []json.Number{"1"}} },
		"no number":            func(c *Candidate) { c.Inputs["features"] = CandidateTensor{"FP32", []int64{1, 1}, []json.Number{"x"}} },
		"bad outputs":          func(c *Candidate) { c.Outputs = map[string]CandidateTensor{"p": {"FP32", []int64{3}, nil}} },
	} {
		good, bad := candidates(12)[10], candidates(12)[11]
		edit(&bad)
		if _, _, err := AddCases(dir, []Candidate{good, bad}, Added{}); err == nil {
			t.Errorf("%s: added", name)
		}
		after, err := os.ReadFile(filepath.Join(dir, fileDraftCases))
		if err != nil || string(after) != string(before) {
			t.Fatalf("%s: half of it was added", name)
		}
	}
	for name, raw := range map[string]string{"no JSON": "x", "an unknown field": `{"version":1,"x":1}`, "no criteria": `{"version":1,"name":"n","dataClassification":"c","border":0,"criteria":{"version":1,"outputs":[],"plan":{"margin":0,"alpha":0,"beta":0,"n":0,"allowed":0}},"added":[]}`} {
		if err := os.WriteFile(filepath.Join(dir, fileDraft), []byte(raw), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := OpenDraft(dir); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	// A plan that does not keep what it says is none.
	d.Criteria.Plan.N = 10
	if err := CreateDraft(t.TempDir(), d); err == nil || !strings.Contains(err.Error(), "does not exclude") {
		t.Errorf("a plan that claims too much: %v", err)
	}
}

// A draft with golden outputs is a suite, and one whose reference would
// measure nothing else: the same cases, certified by the same model.
func TestDraftWithGoldenOutputs(t *testing.T) {
	s := drafted(t)
	back, _ := fetched(t, s)
	if len(back.Cases) != 12 || back.Document.Reference.Measured != 0 {
		t.Errorf("%+v", back.Document)
	}
	if floor := back.Document.Reference.Noise["probabilities"]; floor <= 0 || floor > 1.2e-7 {
		t.Errorf("noise floor %v: the step of FP32 below 1 is at most 2^-23", floor)
	}
	for model, want := range map[string]attest.Verdict{"same": attest.Certified, "shifted": attest.Rejected} {
		b := &bench{t: t, suite: back, dir: t.TempDir(), server: targettest.NewServer(t, map[string]func([]float32) []float32{"same": scorer, "shifted": shifted(1)}[model])}
		if r := judged(t, b.replay()); r.Verdict != want {
			t.Errorf("%s: %s %v", model, r.Verdict, r.Reasons)
		}
	}
	opt := SuiteOptions{Model: attest.ResourceOf("", digest.FromString("model")), Target: attest.Target{Protocol: oip.Name, Model: "m"}, Clock: func() time.Time { return start }}
	d := Draft{Version: 1, Name: "d", DataClassification: "synthetic", Criteria: criteria(59, 0)}
	if _, err := d.Suite(candidates(80), opt); err == nil || !strings.Contains(err.Error(), "golden outputs") {
		t.Errorf("without golden outputs: %v", err)
	}
	if _, err := d.Suite(nil, opt); err == nil {
		t.Error("without cases")
	}
}

// Golden outputs that come with cases are what the reference answers, or it is
// not recorded: what somebody brings is not dropped in silence.
func TestRecordOfCasesWithOutputs(t *testing.T) {
	server := targettest.NewServer(t, scorer)
	record := func(edit func(*CandidateTensor)) error {
		list := candidates(80)
		probability := func(i int) []json.Number {
			x := list[i].Inputs["features"].Data
			a, _ := x[0].Float64()
			b, _ := x[1].Float64()
			var numbers []json.Number
			for _, v := range scorer([]float32{float32(a), float32(b)}) {
				numbers = append(numbers, json.Number(fmt.Sprint(v)))
			}
			return numbers
		}
		out := CandidateTensor{Datatype: "FP32", Shape: []int64{1, 2}, Data: probability(7)}
		edit(&out)
		list[7].Outputs = map[string]CandidateTensor{"probabilities": out}
		_, err := Record(t.Context(), connect(t, server), RecordOptions{
			Name: "s", Model: attest.ResourceOf("", digest.FromString("model")), Target: targetOf(server), Candidates: list,
			Claim: 59, Border: 2, Criteria: criteria(59, 0), DataClassification: "synthetic", Clock: func() time.Time { return start },
		})
		return err
	}
	if err := record(func(*CandidateTensor) {}); err != nil {
		t.Errorf("those of the reference: %v", err)
	}
	for want, edit := range map[string]func(*CandidateTensor){
		"the reference answers another": func(c *CandidateTensor) { c.Data[0], c.Data[1] = c.Data[1], c.Data[0] },
		"does not compare":              func(c *CandidateTensor) { c.Datatype = "FP64" },
		"too large for FP32":            func(c *CandidateTensor) { c.Data[0] = "1e39" },
	} {
		if err := record(edit); err == nil || !strings.Contains(err.Error(), "case-0007") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, and not %q", err, want)
		}
	}
}

// Strata: a marked border case is one, a case marked as a claim case is never
// a border case, and the draw depends on the seed alone.
func TestDraw(t *testing.T) {
	type thing struct {
		id, stratum string
		distance    float64
	}
	about := func(x thing) (string, string, float64) { return x.id, x.stratum, x.distance }
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(rt, "n")
		var all []thing
		for i := range n {
			all = append(all, thing{string(rune('A' + i)), rapid.SampledFrom([]string{"", "", "claim", "border"}).Draw(rt, "stratum"), rapid.Float64Range(0, 1).Draw(rt, "distance")})
		}
		claim, border := rapid.IntRange(0, n).Draw(rt, "claim"), rapid.IntRange(0, n).Draw(rt, "border")
		chosen, atBorder, err := draw(slices.Clone(all), [32]byte{1}, claim, border, about)
		if err != nil {
			mayClaim, marked := 0, 0
			for _, x := range all {
				if x.stratum != "border" {
					mayClaim++
				} else {
					marked++
				}
			}
			if claim <= mayClaim && border <= marked {
				rt.Errorf("%v, with %d that may be claim cases for %d, and %d marked for %d border cases", err, mayClaim, claim, marked, border)
			}
			return
		}
		again, _, _ := draw(slices.Clone(all), [32]byte{1}, claim, border, about)
		if !slices.Equal(chosen, again) || len(chosen) != claim+border || len(atBorder) != border {
			rt.Errorf("chosen %v, then %v", chosen, again)
		}
		nearest, farthest := math.Inf(1), 0.0
		for _, x := range chosen {
			if atBorder[x.id] && x.stratum == "claim" || !atBorder[x.id] && x.stratum == "border" {
				rt.Errorf("%+v is in the other stratum", x)
			}
			if atBorder[x.id] && x.stratum == "" {
				farthest = math.Max(farthest, x.distance)
			}
		}
		for _, x := range all {
			if !slices.Contains(chosen, x) && x.stratum == "" {
				nearest = math.Min(nearest, x.distance)
			}
		}
		if nearest < farthest {
			rt.Errorf("a case at %v was left out for one at %v", nearest, farthest)
		}
	})
}
