package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/verify/attest"
)

// drafted is a small suite whose cases bring their golden outputs.
func drafted(t testing.TB) *Suite {
	t.Helper()
	return draftedFor(t, 0.3, 3)
}

func draftedFor(t testing.TB, margin float64, border int) *Suite {
	t.Helper()
	n, err := stats.SmallestN(0, margin, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	c := criteria(n, 0)
	c.Plan.Margin = margin
	d := Draft{Version: 1, Name: "small", DataClassification: "synthetic", Border: border, Criteria: c}
	list := candidates(40)
	for i, c := range list {
		in := []float32{}
		for _, x := range c.Inputs["features"].Data {
			v, err := x.Float64()
			if err != nil {
				t.Fatal(err)
			}
			in = append(in, float32(v))
		}
		p := scorer(in)
		list[i].Label = "known"
		list[i].Outputs = map[string]CandidateTensor{"probabilities": {Datatype: "FP32", Shape: []int64{1, 2}, Data: []json.Number{json.Number(fmt.Sprint(p[0])), json.Number(fmt.Sprint(p[1]))}}}
	}
	s, err := d.Suite(list, SuiteOptions{Model: attest.ResourceOf("", digest.FromString("model")), Target: attest.Target{Protocol: oip.Name, Model: "m", Version: "1"}, Clock: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fetched is what a registry gives back of a suite.
func fetched(t testing.TB, s *Suite) (*Suite, *Artifact) {
	t.Helper()
	a, err := s.Artifact()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ReadSuite(t.Context(), a.fetch, a.Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	return back, a
}

func (a *Artifact) fetch(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Digest == a.Descriptor.Digest {
		return a.Manifest, nil
	}
	for _, b := range a.Blobs {
		if b.Descriptor.Digest == desc.Digest {
			return b.Data, nil
		}
	}
	return nil, errors.New("not found")
}

func TestSealed(t *testing.T) {
	s := drafted(t)
	which := map[string]bool{s.Cases[0].ID: true, s.Cases[5].ID: true, "another": true}
	label, bits := s.Cases[0].Label, s.Tensors[s.Cases[0].InputTensor("features")].Bits
	part, err := s.Seal(which, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Seal(which, rand.Reader); err == nil {
		t.Error("a suite is sealed twice")
	}
	back, a := fetched(t, s)
	if back.Closed() != 2 || back.Sealed() != 2 || s.Closed() != 0 {
		t.Fatalf("%d cases are closed and %d sealed", back.Closed(), back.Sealed())
	}
	// Nothing of a sealed case is to be seen.
	for _, b := range a.Blobs {
		if bytes.Contains(b.Data, bits) {
			t.Errorf("the inputs of a sealed case are in %v", b.Descriptor.Annotations)
		}
	}
	for _, c := range back.Cases {
		if c.Sealed != "" && (c.Label != "" || c.Request != "" || len(c.Slice) != 0) {
			t.Errorf("%+v", c)
		}
	}
	// Closed, it measures nothing and judges nothing.
	if _, _, err := Replay(t.Context(), back, attest.Plan{}, "", nil, ReplayOptions{Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("a replay of a closed suite: %v", err)
	}
	if _, err := Judge(&Replayed{Suite: back}); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("a verdict on a closed suite: %v", err)
	}
	if err := back.Open(part); err != nil {
		t.Fatal(err)
	}
	if back.Closed() != 0 || back.Cases[0].Label != label || !bytes.Equal(back.Tensors[back.Cases[0].InputTensor("features")].Bits, bits) {
		t.Errorf("opened: %+v", back.Cases[0])
	}
	if again, err := back.Artifact(); err != nil || again.Descriptor.Digest != a.Descriptor.Digest {
		t.Errorf("an opened suite is another artifact: %v", err)
	}
	if err := back.Open(part); err == nil {
		t.Error("it is opened twice")
	}
	// The same cases have other digests the next time: nobody can guess them.
	other := drafted(t)
	otherPart, err := other.Seal(which, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if other.Cases[0].Sealed == s.Cases[0].Sealed {
		t.Error("the digest gives the case away")
	}
	lines := bytes.SplitAfter(part, []byte("\n"))
	for name, bad := range map[string][]byte{
		"nothing": {}, "another part": otherPart, "a line too few": lines[0], "a line twice": slices.Concat(part, lines[0]), "no newline between": bytes.ReplaceAll(part, []byte("\n"), nil), "more": append(bytes.Clone(part), "x\n"...),
	} {
		closed, _ := fetched(t, s)
		if err := closed.Open(bad); err == nil {
			t.Errorf("%s: opened", name)
		}
		if closed.Closed() != 2 {
			t.Errorf("%s: the suite did not stay closed", name)
		}
	}
	if _, err := drafted(t).Seal(map[string]bool{"another": true}, rand.Reader); err == nil {
		t.Error("nothing was sealed, and no error")
	}
}

// Not a bit of the sealed part can be changed.
func TestASealedPartIsItsDigest(t *testing.T) {
	s := drafted(t)
	part, err := s.Seal(map[string]bool{s.Cases[0].ID: true, s.Cases[1].ID: true}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		changed := bytes.Clone(part)
		i := rapid.IntRange(0, len(part)-2).Draw(rt, "at") // the last line end is none of the case
		changed[i] ^= byte(1 << rapid.IntRange(0, 7).Draw(rt, "bit"))
		closed, _ := fetched(t, s)
		if err := closed.Open(changed); err == nil {
			rt.Errorf("byte %d changed, and it opens", i)
		}
	})
}

// A suite with a sealed part measures as the open one does.
func TestASealedSuiteCertifies(t *testing.T) {
	b := newBench(t, rounding)
	which := map[string]bool{}
	for i, c := range b.suite.Cases {
		which[c.ID] = i%2 == 0
	}
	part, err := b.suite.Seal(which, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.suite, _ = fetched(t, b.suite)
	if err := b.suite.Open(part); err != nil {
		t.Fatal(err)
	}
	if r := judged(t, b.replay()); r.Verdict != attest.Certified || r.Cases.Compared != 71 {
		t.Errorf("%+v", r)
	}
}

// A sealed part is first held against its digest, which no fuzzer finds. Whoever
// made the suite can have sealed anything, though: so the suite is also given the
// digests of the lines that are tried.
func FuzzOpen(f *testing.F) {
	s := draftedFor(f, 0.95, 0) // of one case
	part, err := s.Seal(map[string]bool{s.Cases[0].ID: true}, bytes.NewReader(make([]byte, 32)))
	if err != nil {
		f.Fatal(err)
	}
	closed := func() *Suite {
		cases, tensors, texts := s.public()
		return &Suite{Document: s.Document, Criteria: s.Criteria, Cases: cases, Tensors: tensors, Texts: texts}
	}
	f.Add(part)
	f.Add(bytes.Replace(part, []byte(`"FP32"`), []byte(`"FP64"`), 1))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if closed().Open(raw) == nil && !bytes.Equal(bytes.TrimSuffix(raw, []byte("\n")), bytes.TrimSuffix(part, []byte("\n"))) {
			t.Error("another part opens it")
		}
		line, _, _ := bytes.Cut(raw, []byte("\n"))
		hostile := closed()
		hostile.Cases[0].Sealed = string(digest.FromBytes(line))
		if err := hostile.Open(raw); err != nil {
			if hostile.Closed() != 1 {
				t.Errorf("it did not open (%v), and %d cases are closed", err, hostile.Closed())
			}
			return
		}
		if err := hostile.validate(); err != nil || hostile.Cases[0].ID != s.Cases[0].ID {
			t.Errorf("it opened, and is case %s: %v", hostile.Cases[0].ID, err)
		}
		for key, x := range hostile.Tensors {
			if _, err := x.Values(); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
	})
}
