package attest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// An Environment describes one place where models are served: where it is,
// what it is made of, and how we know each of these things.
type Environment struct {
	Name   string `json:"name"`
	Target Target `json:"target"`

	// Labels such as region and residency, in the operator's words.
	Labels map[string]string `json:"labels,omitempty"`

	// Fingerprint maps a field name ("cpu.flags", "kernel", "serving.stack")
	// to what is known of it.
	Fingerprint map[string]FingerprintField `json:"fingerprint"`

	RecordedAt time.Time `json:"recordedAt"`
}

// A Target says how to reach the environment.
type Target struct {
	Protocol string `json:"protocol"` // "oip-v2-rest"
	URL      string `json:"url"`
	Model    string `json:"model"`
	Version  string `json:"version,omitempty"`
}

// Assurance says how a fingerprint field is known.
type Assurance string

const (
	Attested    Assurance = "attested"    // by hardware, with a quote
	Observed    Assurance = "observed"    // measured by us
	Declared    Assurance = "declared"    // the environment or its operator says so
	Unavailable Assurance = "unavailable" // asked for and not to be had
)

// A FingerprintField is one fact about an environment.
type FingerprintField struct {
	Value     string    `json:"value"`
	Assurance Assurance `json:"assurance"`
}

// Validate says what is missing or contradictory, or nil.
func (e Environment) Validate() error {
	switch {
	case e.Name == "":
		return errors.New("name is missing")
	case e.Target.Protocol == "":
		return errors.New("target.protocol is missing")
	case e.Target.URL == "":
		return errors.New("target.url is missing")
	case e.Target.Model == "":
		return errors.New("target.model is missing")
	case e.RecordedAt.IsZero():
		return errors.New("recordedAt is missing")
	}
	for k, f := range e.Fingerprint {
		// Diff names all parts of an environment in one list: a field with
		// the name of another part would hide its changes.
		if k == "" || k == "name" || strings.HasPrefix(k, "target.") || strings.HasPrefix(k, "label.") {
			return fmt.Errorf("fingerprint field %q has a name that is kept for other parts of the document", k)
		}
		switch f.Assurance {
		case Attested, Observed, Declared:
			if f.Value == "" {
				return fmt.Errorf("fingerprint field %q is %s but empty; mark it %s", k, f.Assurance, Unavailable)
			}
		case Unavailable:
			if f.Value != "" {
				return fmt.Errorf("fingerprint field %q is %s but has a value", k, f.Assurance)
			}
		default:
			return fmt.Errorf("fingerprint field %q has unknown assurance %q", k, f.Assurance)
		}
	}
	return nil
}

// A Trigger says what a change of environment does to certificates.
type Trigger string

const (
	Hard Trigger = "hard" // certificates for the old environment are void
	Soft Trigger = "soft" // certificates stand; measure again soon
)

// A Change is one difference between two environment documents.
type Change struct {
	Field   string  `json:"field"`
	Old     string  `json:"old"`
	New     string  `json:"new"`
	Trigger Trigger `json:"trigger"`
	Why     string  `json:"why"`
}

// rules say what a change of a field does to certificates, and why: the first
// whose name is the field's, or whose name ends with a point and begins it. Every
// other field is hard, so that one nobody thought of fails closed.
var rules = []struct {
	field   string
	trigger Trigger
	why     string
}{
	{"label.region", Soft, unrelated}, {"label.owner", Soft, unrelated}, {"host.name", Soft, unrelated}, {"target.url", Soft, unrelated},
	{"kernel", Soft, "a kernel schedules and does not compute; replay again at the next occasion"},
	{"host.timezone", Soft, "features made from dates may depend on it; replay again soon"},
	{"driver.patch", Soft, patch}, {"driver.patch.", Soft, patch},
	{"name", Hard, "another environment is another measurement"},
	{"target.", Hard, "another thing may answer there"},
	{"cpu.", Hard, "another processor, or share of it, takes other kernels and other orders of summation"},
	{"machine", Hard, "another instruction set rounds and fuses in other places"},
	{"nvidia.", Hard, "another GPU, driver or mode takes other kernels and perhaps another precision"},
	{"amd.", Hard, "another GPU, driver or mode takes other kernels and perhaps another precision"},
	{"gpu", Hard, "another accelerator, or none, takes other kernels"},
	{"library.", Hard, "another version of what computes may compute something else"},
	{"threads.", Hard, "the number of threads changes the order of summation"},
	{"precision.", Hard, "numbers are computed in another precision"},
	{"determinism.", Hard, "answers may come to depend on what else is asked"},
	{"device.", Hard, "another device may compute"},
	{"container.", Hard, "other bytes run"},
	{"serving.", Hard, "another server, or other settings of it"},
}

const (
	unrelated = "the answer should not depend on it; replay again at the next occasion"
	patch     = "a patch should not change kernels; replay again at the next occasion"
)

func ruleOf(field string) (Trigger, string) {
	for _, r := range rules {
		if r.field == field || strings.HasSuffix(r.field, ".") && strings.HasPrefix(field, r.field) {
			return r.trigger, r.why
		}
	}
	return Hard, "what computes the answer may differ; replay and certify again"
}

// Diff lists what changed from a to b, sorted by field. The time of recording
// is not part of what an environment is.
func Diff(a, b Environment) []Change {
	old, now := a.flat(), b.flat()
	var fields []string
	for k := range old {
		fields = append(fields, k)
	}
	for k := range now {
		if _, ok := old[k]; !ok {
			fields = append(fields, k)
		}
	}
	slices.Sort(fields)
	var changes []Change
	for _, k := range fields {
		if old[k] == now[k] {
			continue
		}
		trigger, why := ruleOf(k)
		changes = append(changes, Change{Field: k, Old: old[k], New: now[k], Trigger: trigger, Why: why})
	}
	return changes
}

func (e Environment) flat() map[string]string {
	m := map[string]string{
		"name": e.Name, "target.protocol": e.Target.Protocol, "target.url": e.Target.URL,
		"target.model": e.Target.Model, "target.version": e.Target.Version,
	}
	for k, v := range e.Labels {
		m["label."+k] = v
	}
	for k, f := range e.Fingerprint {
		m[k] = f.Value + " (" + string(f.Assurance) + ")"
	}
	return m
}
