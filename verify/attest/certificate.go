package attest

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// A Verdict is the outcome of judging a replay.
type Verdict string

const (
	// Certified: the environment is equivalent to the reference within the
	// stated margins.
	Certified Verdict = "CERTIFIED"

	// Rejected: it is shown not to be.
	Rejected Verdict = "REJECTED"

	// Inconclusive: the evidence does not reach. It is never a pass.
	Inconclusive Verdict = "INCONCLUSIVE"
)

// A Certificate says that a model behaves in an environment as it does in the
// reference environment, within margins, for a time. Its statement's only
// subject is the model's manifest digest: the suite and the environment are
// named inside, because in-toto subjects are matched one by one and the
// certificate must not verify as a statement about an environment.
type Certificate struct {
	// CertificateID is a "urn:uuid:".
	CertificateID string `json:"certificateId"`

	// Verdict is always CERTIFIED; any other value is refused by Validate.
	Verdict Verdict `json:"verdict"`

	Finding

	// IssuedAt, NotBefore and NotAfter are RFC 3339 in UTC.
	IssuedAt time.Time `json:"issuedAt"`
	Validity Validity  `json:"validity"`

	// LogOrigin is the origin line of the transparency log that will record
	// this certificate. The index is not known before signing and is kept
	// beside the bundle.
	LogOrigin string `json:"logOrigin,omitempty"`
}

// A Finding is what a judged replay came to: the part that a certificate and
// a refusal have in common.
type Finding struct {
	// Claim is the result in one sentence, with its margin and its numbers.
	Claim string `json:"claim"`

	// Environment is the environment document that was measured, by digest.
	EnvironmentName string   `json:"environmentName"`
	Environment     Resource `json:"environment"`

	Suite    Resource `json:"suite"`
	Criteria Resource `json:"criteria"`
	Plan     Resource `json:"plan"`
	Replay   Resource `json:"replay"`

	Cases   int      `json:"cases"`
	Metrics []Metric `json:"metrics"`

	// Power states what could have gone unseen.
	Power OperatingCharacteristics `json:"operatingCharacteristics"`
}

// Validity is the time in which a statement may be relied on:
// NotBefore <= t < NotAfter.
type Validity struct {
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// Contains reports whether t is inside.
func (v Validity) Contains(t time.Time) bool {
	return !t.Before(v.NotBefore) && t.Before(v.NotAfter)
}

// A Metric is one gated figure of a report. Value and Threshold are decimal
// numbers of at most 9 significant digits, as text, so that every reader
// sees the same bytes.
type Metric struct {
	Name       string `json:"name"`
	Comparator string `json:"comparator"` // "<=", ">=", "=="
	Threshold  string `json:"threshold"`
	Value      string `json:"value"`
	SampleSize int    `json:"sampleSize"`
	Passed     bool   `json:"passed"`
}

// decimal is a number as [Metric] writes it. What is no number (NaN, Inf, an
// empty text) is none of these.
var decimal = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?$`)

// holds says why the metric's own numbers contradict that it passed, or nil.
func (m Metric) holds() error {
	if m.Name == "" || m.SampleSize < 0 {
		return errors.New("its name is missing or its sample size negative")
	}
	var numbers [2]float64
	for i, text := range []string{m.Value, m.Threshold} {
		if !decimal.MatchString(text) {
			return fmt.Errorf("%q is no decimal number", text)
		}
		var err error
		if numbers[i], err = strconv.ParseFloat(text, 64); err != nil {
			return err // out of range
		}
	}
	value, threshold := numbers[0], numbers[1]
	switch {
	case m.Comparator == "<=" && value <= threshold, m.Comparator == ">=" && value >= threshold, m.Comparator == "==" && value == threshold:
		return nil
	}
	return fmt.Errorf("it is said to have passed, but %s %s %s does not hold", m.Value, m.Comparator, m.Threshold)
}

// OperatingCharacteristics state the test's error rates. Numbers are decimal
// text, as in [Metric].
type OperatingCharacteristics struct {
	// Margin is the decision flip rate that the verdict excludes, with
	// confidence 1 - Alpha.
	Margin string `json:"margin"`
	Alpha  string `json:"alpha"`

	// Planned and Allowed are the plan (n, c): certify when at most c of n flip.
	Planned  int `json:"planned"`
	Allowed  int `json:"allowed"`
	Observed int `json:"observed"`

	// UpperBound is the one-sided Clopper-Pearson bound on the flip rate.
	UpperBound string `json:"upperBound"`

	// DetectableRate is the smallest flip rate that the plan would have
	// refused with probability at least 1 - Beta.
	Beta           string `json:"beta"`
	DetectableRate string `json:"detectableRate"`
}

// PredicateType implements [Predicate].
func (Certificate) PredicateType() string { return PredicateCertificate }

// Validate implements [Predicate].
func (c Certificate) Validate() error {
	switch {
	case c.CertificateID == "":
		return errors.New("certificateId is missing")
	case c.Verdict != Certified:
		return fmt.Errorf("verdict is %q: only %s is ever certified; sign a refusal instead", c.Verdict, Certified)
	case c.IssuedAt.IsZero():
		return errors.New("issuedAt is missing")
	case c.Validity.NotBefore.IsZero() || c.Validity.NotAfter.IsZero():
		return errors.New("validity is missing")
	case !c.Validity.NotBefore.Before(c.Validity.NotAfter):
		return errors.New("validity ends before it begins")
	}
	for _, m := range c.Metrics {
		if !m.Passed {
			return fmt.Errorf("metric %q did not pass", m.Name)
		}
		if err := m.holds(); err != nil {
			return fmt.Errorf("metric %q: %w", m.Name, err)
		}
	}
	return c.Finding.validate()
}

func (f Finding) validate() error {
	switch {
	case f.Claim == "":
		return errors.New("claim is missing")
	case f.EnvironmentName == "":
		return errors.New("environmentName is missing")
	case f.Cases <= 0:
		return errors.New("no cases")
	case len(f.Metrics) == 0:
		return errors.New("no metrics")
	}
	for name, r := range map[string]Resource{
		"environment": f.Environment, "suite": f.Suite, "criteria": f.Criteria, "plan": f.Plan, "replay": f.Replay,
	} {
		if _, err := r.Digest.OCI(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// A Refusal says that a replay did not certify an environment. Its subject is
// the replay, never the model, and it travels outside Sigstore's media types:
// a refusal must not verify as anybody's signature of the model.
type Refusal struct {
	RefusalID string    `json:"refusalId"`
	Verdict   Verdict   `json:"verdict"` // REJECTED or INCONCLUSIVE
	Model     Resource  `json:"model"`
	Reasons   []string  `json:"reasons"`
	IssuedAt  time.Time `json:"issuedAt"`
	Finding
}

// PredicateType implements [Predicate].
func (Refusal) PredicateType() string { return PredicateRefusal }

// Validate implements [Predicate].
func (r Refusal) Validate() error {
	switch {
	case r.RefusalID == "":
		return errors.New("refusalId is missing")
	case r.Verdict != Rejected && r.Verdict != Inconclusive:
		return fmt.Errorf("verdict is %q: a refusal is %s or %s", r.Verdict, Rejected, Inconclusive)
	case len(r.Reasons) == 0:
		return errors.New("reasons are missing")
	case r.IssuedAt.IsZero():
		return errors.New("issuedAt is missing")
	}
	if _, err := r.Model.Digest.OCI(); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	return r.Finding.validate()
}
