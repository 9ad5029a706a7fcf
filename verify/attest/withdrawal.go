package attest

import (
	"errors"
	"fmt"
	"time"
)

// A Withdrawal takes back the thing that is its subject: a certificate's
// bundle manifest, or a model version, by digest. It takes effect at once.
type Withdrawal struct {
	Reason      string    `json:"reason"`
	WithdrawnAt time.Time `json:"withdrawnAt"`
	StatedBy    string    `json:"statedBy"`

	// Until makes it a suspension, which ends then. The newest suspension of a
	// thing replaces those before it; one that ends when it begins lifts them.
	// Without, it is withdrawn for good.
	Until time.Time `json:"until,omitzero"`
}

// InForce returns which of the withdrawals of one thing holds at a time; -1 if
// none does. One for good is never lifted. Of several suspensions it is the
// newest that counts; one that is dated later than now holds as well and lifts
// nothing yet, so that a wrong clock allows nothing.
func InForce(list []Withdrawal, now time.Time) int {
	newest, holds := -1, -1
	later := func(i, than int) bool { return than < 0 || list[i].Until.After(list[than].Until) }
	for i, w := range list {
		switch {
		case w.Until.IsZero():
			return i
		case w.WithdrawnAt.After(now):
			if now.Before(w.Until) && later(i, holds) {
				holds = i
			}
		case newest < 0 || w.WithdrawnAt.After(list[newest].WithdrawnAt),
			w.WithdrawnAt.Equal(list[newest].WithdrawnAt) && later(i, newest):
			newest = i
		}
	}
	if newest >= 0 && now.Before(list[newest].Until) && later(newest, holds) {
		holds = newest
	}
	return holds
}

// PredicateType implements [Predicate].
func (Withdrawal) PredicateType() string { return PredicateWithdrawal }

// Validate implements [Predicate].
func (w Withdrawal) Validate() error {
	switch {
	case w.Reason == "":
		return errors.New("reason is missing")
	case w.WithdrawnAt.IsZero():
		return errors.New("withdrawnAt is missing")
	case w.StatedBy == "":
		return errors.New("statedBy is missing")
	case !w.Until.IsZero() && w.Until.Before(w.WithdrawnAt):
		return errors.New("until is before withdrawnAt")
	}
	return nil
}

// An Approval is a person's signature in the sense of 21 CFR 11.50: who, when,
// with which meaning, and why. The name is not here: Person is an opaque id.
// What was signed cannot be erased, so Reason has no names in it either.
type Approval struct {
	Person     string    `json:"person"`
	NameHash   string    `json:"nameHash"` // salted hash of the name in the erasable table
	Meaning    string    `json:"meaning"`  // review, approval, responsibility, authorship
	Reason     string    `json:"reason"`
	ApprovedAt time.Time `json:"approvedAt"`
}

// MeaningApproval is the meaning that counts as an approval.
const MeaningApproval = "approval"

// PredicateType implements [Predicate].
func (Approval) PredicateType() string { return PredicateApproval }

// Validate implements [Predicate].
func (a Approval) Validate() error {
	switch a.Meaning {
	case "review", MeaningApproval, "responsibility", "authorship":
	default:
		return fmt.Errorf("meaning is %q: use review, approval, responsibility or authorship (21 CFR 11.50)", a.Meaning)
	}
	switch {
	case a.Person == "":
		return errors.New("person is missing")
	case a.Reason == "":
		return errors.New("reason is missing")
	case a.ApprovedAt.IsZero():
		return errors.New("approvedAt is missing")
	}
	return nil
}
