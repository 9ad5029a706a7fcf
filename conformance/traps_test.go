package conformance

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// The ten ways in which others fail are each a test here or in a package below:
// go test ./conformance/... -run 'TestTrap[0-9]' -v

// Trap 2: nothing to compare is not the same as nothing that differs.
func TestTrap2NothingIsNoPass(t *testing.T) {
	b := second(newBench(t, scorer))
	replayed := b.replay()
	for name, change := range map[string]func(r *Replayed){
		"no observation": func(r *Replayed) { r.Observations, r.Replay.Observations = nil, 0 },
		"no pre-flight":  func(r *Replayed) { r.Replay.Preflight = nil },
		"no end":         func(r *Replayed) { r.Replay.FinishedAt = time.Time{} },
		"no case": func(r *Replayed) {
			s := *r.Suite
			s.Cases = nil
			r.Suite = &s
		},
		"no criteria": func(r *Replayed) {
			s := *r.Suite
			s.Criteria.Outputs = nil
			r.Suite = &s
		},
		"a protocol nobody knows": func(r *Replayed) { r.Plan.Target.Protocol = "carrier-pigeon" },
		"empty answers": func(r *Replayed) {
			for i := range r.Observations {
				r.Observations[i].Response = []byte("{}")
			}
		},
	} {
		r := *replayed
		r.Observations = append([]attest.Observation{}, replayed.Observations...)
		change(&r)
		if report, err := Judge(&r); err == nil && (report.Verdict == attest.Certified || len(report.Reasons) == 0) {
			t.Errorf("%s: %s", name, report.Verdict)
		}
	}
}

// Trap 3, of texts: the last character of a long text counts as the first does.
func TestTrap3TheEndOfALongText(t *testing.T) {
	d, err := newDecider(attest.TextCriteria{Decision: attest.DecideText})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("and so on ", 300)
	want, got := []attest.TextChoice{{Text: long + "yes", FinishReason: "stop"}}, []attest.TextChoice{{Text: long + "yet", FinishReason: "stop"}}
	p, err := d.pair("{}", want, got)
	if err != nil || p.flip != 0 || p.texts[0].Divergence != len(long)+2 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := d.pair("{}", want, want); err != nil || p.flip >= 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// Trap 5, where no answer shows it: a server that has a temperature of its own is
// found by what it says when it is asked again.
func TestTrap5TemperatureOfItsOwn(t *testing.T) {
	b := newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	r := judged(t, b.replay(b.after("ignore-temperature", every)))
	if r.Verdict != attest.Rejected || r.Texts.Unstable != r.Probes.Used || !strings.Contains(strings.Join(r.Reasons, "; "), "it is noisier than the reference") {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Texts)
	}
	// And what it says that it used is looked at before the first case.
	r = judged(t, b.replay(func(int) string { return "other-settings" }))
	if r.Verdict != attest.Inconclusive || !strings.Contains(strings.Join(r.Reasons, "; "), "pre-flight: applies the parameters that it is sent: temperature is 0, and it says that it used 0.8") {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

// Trap 6: what is counted is cases, and their number does not shrink with the
// answers that come. 40 of 59 without a flip are not a rate of 0 of 40, and many
// choices to one question are one case.
func TestTrap6DenominatorsStay(t *testing.T) {
	b := second(newBench(t, scorer))
	b.server.SetMisbehave(func(n int) string {
		if n > 30 && n%4 == 0 {
			return "http-500"
		}
		return ""
	})
	r := judged(t, b.replay())
	if r.Verdict != attest.Inconclusive || r.Metrics[0].SampleSize != 59 || r.Cases.Claim != 59 || r.Cases.Failed == 0 || r.Power.Planned != 59 {
		t.Errorf("%s: %+v, %+v", r.Verdict, r.Metrics[0], r.Cases)
	}
	choices := newTextBench(t, textCandidates(`,"n":3`), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	report := judged(t, choices.replay(nil))
	if report.Texts.Choices != 3*(textClaim+textBorder) || report.Metrics[0].SampleSize != textClaim {
		t.Errorf("%d choices, and a sample of %d", report.Texts.Choices, report.Metrics[0].SampleSize)
	}
	for _, g := range report.Gates {
		for _, h := range g.Hypotheses {
			if h.N > textClaim+textBorder {
				t.Errorf("%s: %s has n = %d", g.Name, h.Name, h.N)
			}
		}
	}
}

// Trap 7: a golden number is its bits, from the answer to the artifact and back;
// what is no number is none, however it is written; and a unit in the last place
// is one of the declared type.
func TestTrap7FloatPlumbing(t *testing.T) {
	awkward := []float32{0.1, 1.0 / 3, math.SmallestNonzeroFloat32, math.MaxFloat32, float32(math.Copysign(0, -1)), math.Nextafter32(1, 2), 1.1754942e-38}
	var n atomic.Int64
	s := targettest.NewServer(t, func([]float32) []float32 {
		v := awkward[int(n.Add(1))%len(awkward)]
		return []float32{v, -v}
	})
	tg := connect(t, s)
	q := target.Question{ID: "1", Model: "m", Version: "1", Inputs: []compare.Tensor{targettest.FP32("features", []int64{1, 2}, 1, 2)}, Outputs: []string{"probabilities"}}
	request, err := tg.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range awkward {
		x := tg.Send(t.Context(), request)
		a, err := tg.Decode(q, x.Response)
		if err != nil {
			t.Fatal(err)
		}
		seen[string(a.Outputs[0].Bits)] = true
		raw, err := writeTensors(map[string]compare.Tensor{"1/out/probabilities": a.Outputs[0]})
		if err != nil {
			t.Fatal(err)
		}
		back, err := readTensors(raw, func(string) string { return "probabilities" })
		if err != nil || !bytes.Equal(back["1/out/probabilities"].Bits, a.Outputs[0].Bits) {
			t.Errorf("%x came back as %x, %v", a.Outputs[0].Bits, back["1/out/probabilities"].Bits, err)
		}
	}
	for _, v := range awkward {
		if !seen[string(targettest.FP32("x", []int64{2}, v, -v).Bits)] {
			t.Errorf("%g did not come over JSON as its bits", v)
		}
	}
	for _, token := range []string{"nan", "infinity", "null", "strings"} {
		b := second(newBench(t, scorer))
		b.server.SetMisbehave(func(n int) string {
			if n == 30 {
				return token
			}
			return ""
		})
		if r := judged(t, b.replay()); r.Verdict != attest.Rejected || r.Cases.Wrong != 1 {
			t.Errorf("%s: %s %+v", token, r.Verdict, r.Cases)
		}
	}
	// One step of BF16 is 2^16 of FP32's, and is one of its own.
	one, next := compare.Tensor{Name: "x", Datatype: "BF16", Shape: []int64{1}, Bits: []byte{0x80, 0x3f}}, compare.Tensor{Name: "x", Datatype: "BF16", Shape: []int64{1}, Bits: []byte{0x81, 0x3f}}
	if d := compare.Tensors(one, next, compare.Tolerance{}); d.MaxULP != 1 || d.MaxAbs != 1.0/128 {
		t.Errorf("BF16: %+v", d)
	}
	f := compare.Tensors(targettest.FP32("x", []int64{1}, 1), targettest.FP32("x", []int64{1}, 1+1.0/128), compare.Tolerance{})
	if f.MaxULP != 1<<16 {
		t.Errorf("FP32: %+v", f)
	}
	// Base64 is little-endian FP32, and the same bits as the numbers.
	e := targettest.NewOpenAI(t)
	p, err := openai.New(attest.Target{Protocol: openai.NameEmbeddings, URL: e.URL + "/v1", Model: "parrot", Version: "parrot-2026-03-01"})
	if err != nil {
		t.Fatal(err)
	}
	vector := func(format string) compare.Tensor {
		q := target.Question{ID: "1", Model: "parrot", Version: "parrot-2026-03-01", Request: fmt.Appendf(nil, `{"input":"one two three","encoding_format":%q}`, format)}
		raw, err := p.Encode(q)
		if err != nil {
			t.Fatal(err)
		}
		x := p.Send(t.Context(), raw)
		a, err := p.Decode(q, x.Response)
		if err != nil {
			t.Fatal(err)
		}
		if format == "base64" {
			var body struct{ Data []struct{ Embedding string } }
			if err := json.Unmarshal(x.Body, &body); err != nil {
				t.Fatal(err)
			}
			bits, err := base64.StdEncoding.DecodeString(body.Data[0].Embedding)
			if err != nil || !bytes.Equal(bits, a.Outputs[0].Bits) {
				t.Errorf("%x, %v", bits, err)
			}
		}
		return a.Outputs[0]
	}
	if d := compare.Tensors(vector("float"), vector("base64"), compare.Tolerance{}); d.BitsDiffer != 0 || d.Elements != 8 {
		t.Errorf("%+v", d)
	}
}

// Trap 8: what an environment answers when it is idle says nothing of what it
// answers under load, nor in a batch. Both are asked for.
func TestTrap8BatchAndLoad(t *testing.T) {
	var flying atomic.Int64
	crowded := func(in []float32) []float32 {
		defer flying.Add(-1)
		if flying.Add(1) == 1 {
			time.Sleep(2 * time.Millisecond) // as long as it takes for others to come
			if flying.Load() == 1 {
				return scorer(in)
			}
		}
		return shifted(1)(in)
	}
	b := second(newBench(t, crowded))
	if r := judged(t, b.replay()); r.Verdict != attest.Certified {
		t.Errorf("idle: %s %v", r.Verdict, r.Reasons)
	}
	b.dir = t.TempDir()
	plan, d, env := b.plan()
	plan.Concurrency = 8
	replay, observations, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: b.dir, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if r := judged(t, &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations}); r.Verdict != attest.Rejected {
		t.Errorf("eight at once: %s %v", r.Verdict, r.Reasons)
	}
	// In a batch all rows but the first are off: the probes see it, and no case does.
	s := targettest.NewServer(t, scorer)
	var last atomic.Int64 // the request of the last row
	s.SetModel(func(in []float32) []float32 {
		p := scorer(in)
		if n := int64(s.Requests()); last.Swap(n) == n {
			return []float32{p[0] - 1e-3, p[1] + 1e-3}
		}
		return p
	})
	batched := second(newBench(t, nil))
	batched.server = s
	r := judged(t, batched.replay())
	if r.Verdict != attest.Rejected || !strings.Contains(strings.Join(r.Reasons, "; "), "noisier than the reference") {
		t.Errorf("in batches: %s %v", r.Verdict, r.Reasons)
	}
}
