package conformance

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/verify/attest"
)

// A suite is golden inputs, not golden requests: what was recorded over one
// protocol is replayed over another, and the record is held against the bytes
// that this other one sends.
func TestASuiteOverAnotherProtocol(t *testing.T) {
	b := newBench(t, scorer)
	plan, d, env := b.plan()
	env.Target.Protocol = oip.NameBinary
	plan.Target = env.Target
	tg, err := Open(env.Target)
	if err != nil {
		t.Fatal(err)
	}
	replay, observations, err := Replay(t.Context(), b.suite, plan, d, tg, ReplayOptions{Dir: b.dir, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	r := &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations}
	if report := judged(t, r); report.Verdict != attest.Certified || report.Numerics[0].BitsDiffer != 0 {
		t.Errorf("%+v", report)
	}
	r.Observations[3].Request = string(digest.FromString("something else was asked"))
	if report := judged(t, r); report.Verdict != attest.Rejected || report.Cases.Damaged != 1 {
		t.Errorf("%+v", report)
	}
}
