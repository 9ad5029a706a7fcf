package conformance

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// PlanOptions say how a replay is to be made.
type PlanOptions struct {
	Model             digest.Digest
	Suite             *Suite
	SuiteDigest       digest.Digest
	CriteriaDigest    digest.Digest
	Environment       attest.Environment
	EnvironmentDigest digest.Digest
	Concurrency       int           // 0 is 1
	Timeout           time.Duration // of one request; 0 is 30 s
	Retries           int           // further attempts, recorded and never judged
	Probes            int           // cases asked again to measure noise; 0 is 32 for criteria of version 2
	Deadline          time.Duration // 0 is a day
	Now               time.Time
}

// NewPlan writes down what will be asked of whom, before anything is.
func NewPlan(opt PlanOptions) (attest.Plan, error) {
	if opt.Concurrency == 0 {
		opt.Concurrency = 1
	}
	if opt.Timeout == 0 {
		opt.Timeout = 30 * time.Second
	}
	if opt.Deadline == 0 {
		opt.Deadline = 24 * time.Hour
	}
	if opt.Probes == 0 && opt.Suite.Criteria.Version == 2 {
		opt.Probes = min(32, opt.Suite.Document.Claim)
	}
	p := attest.Plan{
		Model:           attest.ResourceOf("", opt.Model),
		Suite:           attest.ResourceOf(attest.SuiteType, opt.SuiteDigest),
		Criteria:        attest.ResourceOf(attest.CriteriaType, opt.CriteriaDigest),
		EnvironmentName: opt.Environment.Name, Environment: attest.ResourceOf(attest.EnvironmentType, opt.EnvironmentDigest),
		Target: opt.Environment.Target, Cases: len(opt.Suite.Cases), Order: opt.Suite.order(),
		Concurrency: opt.Concurrency, TimeoutMillis: int(opt.Timeout.Milliseconds()), Retries: opt.Retries, Probes: opt.Probes,
		PlannedAt: opt.Now.UTC(), Deadline: opt.Now.Add(opt.Deadline).UTC(),
	}
	return p, p.Validate()
}

// ReplayOptions configure Replay.
type ReplayOptions struct {
	// Dir keeps the observations while they are made. Observations that are
	// there already, of an earlier run that was interrupted, are not made
	// again.
	Dir string

	Clock    func() time.Time
	Progress func(done int) // called after each case; done cases since the last call
}

// Replay asks an environment all questions of a suite and records every
// attempt: what was sent, what came back, when, or why nothing did. It judges
// nothing. A question that gets no answer is recorded as that, and the replay
// goes on.
func Replay(ctx context.Context, s *Suite, plan attest.Plan, planDigest digest.Digest, tg target.Target, opt ReplayOptions) (attest.Replay, []attest.Observation, error) {
	if err := s.validate(); err != nil {
		return attest.Replay{}, nil, err
	}
	if plan.Order != s.order() || plan.Cases != len(s.Cases) {
		return attest.Replay{}, nil, errors.New("the plan is for another suite")
	}
	j, err := openJournal(filepath.Join(opt.Dir, fileObservations))
	if err != nil {
		return attest.Replay{}, nil, err
	}
	defer j.close()
	replay := attest.Replay{
		Plan: attest.ResourceOf(attest.PlanType, planDigest), Model: plan.Model, Environment: plan.Environment,
		StartedAt: opt.Clock().UTC(), Preflight: preflight(ctx, s, plan, tg),
	}
	if len(j.list) > 0 && j.list[0].SentAt.Before(replay.StartedAt) {
		replay.StartedAt = j.list[0].SentAt
	}
	done := map[string]bool{}
	for _, o := range j.list {
		if o.Probe != "" {
			done[probeKey(o.Probe, o.Case)] = true
		} else {
			done[o.Case] = true
		}
	}
	if opt.Progress != nil && len(done) > 0 {
		opt.Progress(len(done))
	}
	var group errgroup.Group
	group.SetLimit(plan.Concurrency)
	for _, c := range s.Cases {
		if done[c.ID] {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			err := attempt(ctx, s, plan, tg, c, j)
			if err == nil && opt.Progress != nil {
				opt.Progress(1)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return attest.Replay{}, nil, err
	}
	// The noise probes come after all cases, so that no case is asked of a
	// server that has just answered it.
	probes, err := s.probes(plan, tg)
	if err != nil {
		return attest.Replay{}, nil, err
	}
	for _, p := range probes {
		if done[probeKey(p.kind, p.cases[0].ID)] || ctx.Err() != nil {
			continue
		}
		group.Go(func() error { return p.send(ctx, plan, tg, j) })
	}
	if err := group.Wait(); err != nil {
		return attest.Replay{}, nil, err
	}
	if err := j.sync(); err != nil {
		return attest.Replay{}, nil, err
	}
	if err := ctx.Err(); err != nil {
		return attest.Replay{}, nil, fmt.Errorf("the replay was interrupted after %d observations: %w", len(j.list), err)
	}
	slices.SortStableFunc(j.list, func(a, b attest.Observation) int {
		return cmp.Or(strings.Compare(a.Probe, b.Probe), strings.Compare(a.Case, b.Case), a.Attempt-b.Attempt)
	})
	replay.FinishedAt, replay.Observations = opt.Clock().UTC(), len(j.list)
	return replay, j.list, nil
}

// attempt asks one question, and again as often as the plan allows while no
// answer comes. The verdict looks at the first attempt only.
func attempt(ctx context.Context, s *Suite, plan attest.Plan, tg target.Target, c attest.Case, j *journal) error {
	q, _, _ := s.question(c, plan.Target)
	request, err := tg.Encode(q)
	if err != nil {
		return fmt.Errorf("case %s: %w", c.ID, err)
	}
	for n := 1; n <= 1+plan.Retries; n++ {
		one, cancel := context.WithTimeout(ctx, time.Duration(plan.TimeoutMillis)*time.Millisecond)
		x := tg.Send(one, request)
		cancel()
		if ctx.Err() != nil {
			return nil // we stopped, not the environment
		}
		o := observation(c.ID, n, request, x)
		if err := j.add(o); err != nil {
			return err
		}
		if x.Failure == nil && x.Status < 500 && x.Status != 429 {
			return nil
		}
	}
	return nil
}

// send asks a probe once.
func (p probe) send(ctx context.Context, plan attest.Plan, tg target.Target, j *journal) error {
	one, cancel := context.WithTimeout(ctx, time.Duration(plan.TimeoutMillis)*time.Millisecond)
	defer cancel()
	x := tg.Send(one, p.request)
	if ctx.Err() != nil {
		return nil
	}
	o := observation(p.cases[0].ID, 1, p.request, x)
	o.Probe = p.kind
	return j.add(o)
}

// observation records an exchange.
func observation(id string, attempt int, request []byte, x target.Exchange) attest.Observation {
	o := attest.Observation{
		Case: id, Attempt: attempt, Request: string(digest.FromBytes(request)),
		SentAt: x.Sent, ReceivedAt: x.Received, Status: x.Status, Header: x.Header, Response: x.Body,
	}
	for _, a := range x.Arrivals {
		o.Arrivals = append(o.Arrivals, attest.Arrival{Bytes: a.Bytes, Micros: a.After.Microseconds()})
	}
	if x.Failure != nil {
		o.Error = &attest.ObservationError{Class: x.Failure.Class, Message: x.Failure.Message}
	}
	return o
}

// preflight asks what has to hold before the cases mean anything. It uses two
// golden inputs; their answers are not judged here.
func preflight(ctx context.Context, s *Suite, plan attest.Plan, tg target.Target) (checks []attest.PreflightCheck) {
	check := func(name string, passed bool, detail string) {
		checks = append(checks, attest.PreflightCheck{Name: name, Passed: passed, Detail: detail})
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Duration(plan.TimeoutMillis)*time.Millisecond)
	defer cancel()
	d, err := tg.Describe(ctx)
	if err != nil {
		check("answers", false, err.Error())
		return checks
	}
	check("answers", true, strings.TrimSpace(d.Server+" "+d.ServerVersion+" "+d.Platform))
	check("serves the version", plan.Target.Version == "" || slices.Contains(d.Versions, plan.Target.Version),
		fmt.Sprintf("it declares %s with versions %v", d.Model, d.Versions))
	if p, ok := tg.(target.Prober); ok {
		q, _, _ := s.question(s.Cases[0], plan.Target)
		for _, c := range p.Probe(ctx, q) {
			check(c.Name, c.Passed, c.Detail)
		}
	}
	same := func(a, b []compare.Tensor) bool {
		return slices.EqualFunc(a, b, func(x, y compare.Tensor) bool { return string(x.Bits) == string(y.Bits) })
	}
	ask := func(c attest.Case) ([]compare.Tensor, error) {
		q, _, _ := s.question(c, plan.Target)
		request, err := tg.Encode(q)
		if err != nil {
			return nil, err
		}
		x := tg.Send(ctx, request)
		if x.Failure != nil {
			return nil, x.Failure
		}
		a, err := tg.Decode(q, x.Response)
		if err != nil {
			return nil, err
		}
		return a.Outputs, nil
	}
	// Two cases whose golden answers differ must not get the same answer:
	// that would be a constant, or somebody's cache.
	first := s.Cases[0]
	_, _, golden := s.question(first, plan.Target)
	for _, c := range s.Cases[1:] {
		_, _, other := s.question(c, plan.Target)
		if same(golden, other) {
			continue
		}
		a, err1 := ask(first)
		b, err2 := ask(c)
		if err := errors.Join(err1, err2); err != nil {
			check("different questions get different answers", false, err.Error())
		} else {
			check("different questions get different answers", !same(a, b), first.ID+" and "+c.ID)
		}
		break
	}
	return checks
}

// A journal is the file of observations while they are made. It is synced in
// the background: a disk that is slow must not be measured as the environment.
type journal struct {
	mu       sync.Mutex
	f        *os.File             // guarded by mu, as all below
	list     []attest.Observation // in the file
	unsynced int                  // since the last sync began
	syncing  chan error           // what the running sync came to; nil if none runs
}

// syncEvery is how many observations a power cut may cost, and as many again
// that were made while a sync ran.
const syncEvery = 64

func openJournal(path string) (*journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	j := &journal{f: f}
	whole := int64(0)
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break // a line without an end was being written when we were stopped
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		var o attest.Observation
		if err := attest.Unmarshal(line[:len(line)-1], &o); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s is damaged after %d bytes: %w; begin again in another folder", path, whole, err)
		}
		whole += int64(len(line))
		j.list = append(j.list, o)
	}
	if err := f.Truncate(whole); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(whole, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) add(o attest.Observation) error {
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.f.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("recording an observation: %w", err)
	}
	j.list = append(j.list, o)
	j.unsynced++
	if j.unsynced >= 2*syncEvery {
		if err := j.synced(); err != nil {
			return err
		}
	}
	if j.unsynced >= syncEvery && j.syncing == nil {
		j.unsynced = 0
		j.syncing = make(chan error, 1)
		go func(f *os.File, done chan<- error) { done <- f.Sync() }(j.f, j.syncing)
	}
	if len(j.syncing) > 0 {
		return j.synced()
	}
	return nil
}

// synced waits for the sync that runs, if one does. The caller holds mu.
func (j *journal) synced() error {
	if j.syncing == nil {
		return nil
	}
	err := <-j.syncing
	j.syncing = nil
	if err != nil {
		return fmt.Errorf("recording observations: %w", err)
	}
	return nil
}

func (j *journal) sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.synced(), j.f.Sync())
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.synced()
	j.f.Close()
}
