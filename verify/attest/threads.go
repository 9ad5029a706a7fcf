package attest

import (
	"errors"
	"fmt"
)

// Threads says that a model was asked at two endpoints that are the same but for
// the number of threads that compute its answers: sums come out in another order,
// and nothing else changes. What that does to the answers is noise.
type Threads struct {
	Own   int `json:"own"`   // of the endpoint whose answers are judged, or are golden
	Other int `json:"other"` // of the second one

	// DeclaredBy says who says so: [ByServer] or [ByOperator]. Nobody can see it
	// from outside.
	DeclaredBy string `json:"declaredBy"`
}

// Who declares a number of threads.
const (
	ByServer   = "server"   // both endpoints, of themselves
	ByOperator = "operator" // at least one of them does not say
)

// Validate says what is missing or contradictory, or nil.
func (t Threads) Validate() error {
	switch {
	case t.Own < 1 || t.Other < 1:
		return fmt.Errorf("threads: %d and %d are no numbers of threads", t.Own, t.Other)
	case t.Own == t.Other:
		return fmt.Errorf("threads: both endpoints run on %d, so that nothing is varied", t.Own)
	case t.DeclaredBy != ByServer && t.DeclaredBy != ByOperator:
		return fmt.Errorf("threads: declaredBy is %q, and has to be %s or %s", t.DeclaredBy, ByServer, ByOperator)
	}
	return nil
}

// OtherThreads is the second endpoint of a plan: all of it but its URL is as it
// is at the plan's target.
type OtherThreads struct {
	URL string `json:"url"`
	Threads
}

// ReferenceThreads is what another number of threads did to the reference.
type ReferenceThreads struct {
	Threads

	// Noise is what it made, and Without what all other perturbations made, by the
	// names of [Reference.Noise], which has the larger of the two.
	Noise   map[string]float64 `json:"noise"`
	Without map[string]float64 `json:"without"`
}

// Validate says what is missing or contradictory, or nil.
func (t ReferenceThreads) Validate(noise map[string]float64) error {
	if err := t.Threads.Validate(); err != nil {
		return err
	}
	for name, floor := range noise {
		a, ok1 := t.Noise[name]
		b, ok2 := t.Without[name]
		if !ok1 || !ok2 || !(a >= 0) || !(b >= 0) || max(a, b) != floor {
			return fmt.Errorf("threads: the noise floor of %s is %v, and not the larger one of what threads (%v) and all else (%v) made", name, floor, a, b)
		}
	}
	if len(t.Noise) != len(noise) || len(t.Without) != len(noise) {
		return errors.New("threads: they have noise of outputs that there are not")
	}
	return nil
}

// ThreadCounts say what came of asking on another number of threads.
type ThreadCounts struct {
	Threads
	Compared int `json:"compared"` // probes

	// Spreads are what it changed, beside the most that another number of threads
	// may: more is no noise, but another model or an environment that depends on
	// its threads.
	Spreads []Spread `json:"spreads"`
	Benign  bool     `json:"benign"` // none is over its limit
}

// A Spread is how far answers are apart that should be the same.
type Spread struct {
	Of    string `json:"of"` // an output, or one of [NoiseOfTexts]
	Most  string `json:"most"`
	Limit string `json:"limit"`
}
