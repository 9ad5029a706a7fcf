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

	// Options are what else the protocol has to know, such as where in an
	// answer the output is: a JSON object, as text. It holds no secret.
	Options string `json:"options,omitempty"`
}

// ReadOptions reads the options into v, strictly; without options v stays as
// it is.
func (t Target) ReadOptions(v any) error {
	if t.Options == "" {
		return nil
	}
	if err := Unmarshal([]byte(t.Options), v); err != nil {
		return fmt.Errorf("options of protocol %s: %w", t.Protocol, err)
	}
	return nil
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

	// Reason says why the field is unavailable. It is for people: two
	// documents that differ in it alone are the same environment.
	Reason string `json:"reason,omitempty"`
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
			if f.Reason != "" {
				return fmt.Errorf("fingerprint field %q is %s and has a reason for being %s", k, f.Assurance, Unavailable)
			}
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

// softFields are those whose change does not void a certificate; every other
// does, so that a field nobody thought of fails closed. The URL is none of them:
// at another address may be another server, and nothing else tells.
var softFields = []string{
	"label.region", "label.owner", "region", "region.zone", "kernel", "host.name", "host.timezone", "driver.patch",
	// What a kernel keeps for itself is not counted: another kernel, another number.
	"memory.bytes",
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
		c := Change{Field: k, Old: old[k], New: now[k], Trigger: Hard, Why: "what computes the answer may differ; replay and certify again"}
		if slices.Contains(softFields, k) {
			c.Trigger, c.Why = Soft, "the answer should not depend on it; replay again at the next occasion"
		}
		changes = append(changes, c)
	}
	return changes
}

func (e Environment) flat() map[string]string {
	m := map[string]string{
		"name": e.Name, "target.protocol": e.Target.Protocol, "target.url": e.Target.URL,
		"target.model": e.Target.Model, "target.version": e.Target.Version,
		"target.options": e.Target.Options,
	}
	for k, v := range e.Labels {
		m["label."+k] = v
	}
	for k, f := range e.Fingerprint {
		m[k] = f.Value + " (" + string(f.Assurance) + ")"
	}
	return m
}
