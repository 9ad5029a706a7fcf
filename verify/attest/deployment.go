package attest

import (
	"errors"
	"fmt"
	"time"
)

// A Deployment says that a model runs in an environment from a moment on.
// Subject: the model's manifest digest. What ran in an environment at a time
// is the newest deployment that had begun by then.
type Deployment struct {
	EnvironmentName string   `json:"environmentName"`
	Environment     Resource `json:"environment"` // the environment document, by digest

	// Basis is "observed" when the stater saw the model answer there, and
	// "declared" when it only says so.
	Basis string `json:"basis"`

	// StatedBy is an opaque id of who says so; no names or addresses.
	StatedBy string    `json:"statedBy"`
	From     time.Time `json:"from"`
}

// PredicateType implements [Predicate].
func (Deployment) PredicateType() string { return PredicateDeployment }

// Validate implements [Predicate].
func (d Deployment) Validate() error {
	switch {
	case d.EnvironmentName == "":
		return errors.New("environmentName is missing")
	case d.Basis != "observed" && d.Basis != "declared":
		return fmt.Errorf(`basis is %q: use "observed" or "declared"`, d.Basis)
	case d.StatedBy == "":
		return errors.New("statedBy is missing")
	case d.From.IsZero():
		return errors.New("from is missing")
	case d.From.Year() < 1970 || d.From.Year() > 2261:
		// Nanoseconds of the Unix epoch, by which deployments are ordered.
		return fmt.Errorf("from is in the year %d: only 1970 to 2261 can be recorded", d.From.Year())
	}
	if _, err := d.Environment.Digest.OCI(); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	return nil
}
