package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/verify/attest"
)

// DefaultValidity is how long a certificate holds.
const DefaultValidity = 90 * 24 * time.Hour

// CertifyOptions say how an outcome is to be stated.
type CertifyOptions struct {
	Replay    digest.Digest // of the replay's manifest
	Validity  time.Duration // 0 is DefaultValidity
	LogOrigin string
	Now       time.Time
}

// Certify judges a replay again and returns the statement to sign: about the
// model if it is CERTIFIED, and about the replay, a refusal, if it is not.
// kept is the report that was stored with the replay: one that does not come
// out the same again is an error.
func Certify(r *Replayed, kept []byte, opt CertifyOptions) (report attest.Report, certificate *attest.Certificate, refusal *attest.Refusal, err error) {
	report, err = Judge(r)
	if err != nil {
		return report, nil, nil, err
	}
	again, err := attest.Marshal(report)
	if err != nil {
		return report, nil, nil, err
	}
	if !bytes.Equal(again, kept) {
		return report, nil, nil, errors.New("judging the replay again gives another report than the one that is stored with it")
	}
	if opt.Validity == 0 {
		opt.Validity = DefaultValidity
	}
	finding := attest.Finding{
		Claim: report.Claim, EnvironmentName: report.EnvironmentName, Environment: report.Environment,
		Suite: report.Suite, Criteria: report.Criteria, Plan: report.Plan,
		Replay: attest.ResourceOf(attest.ReplayType, opt.Replay),
		Cases:  report.Cases.Claim + report.Cases.Border, Metrics: report.Metrics, Power: report.Power,
	}
	now := opt.Now.UTC().Truncate(time.Second)
	id := "urn:uuid:" + uuid.NewString()
	if report.Verdict == attest.Certified {
		c := attest.Certificate{
			CertificateID: id, Verdict: report.Verdict, Finding: finding, IssuedAt: now,
			Validity: attest.Validity{NotBefore: now, NotAfter: now.Add(opt.Validity)}, LogOrigin: opt.LogOrigin,
		}
		if err := c.Validate(); err != nil {
			return report, nil, nil, fmt.Errorf("certificate: %w", err)
		}
		return report, &c, nil, nil
	}
	f := attest.Refusal{RefusalID: id, Verdict: report.Verdict, Model: report.Model, Reasons: report.Reasons, IssuedAt: now, Finding: finding}
	if err := f.Validate(); err != nil {
		return report, nil, nil, fmt.Errorf("refusal: %w", err)
	}
	return report, nil, &f, nil
}
