package registry

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
)

// StatusLife is how long a status list may be relied on: the longest time for
// which somebody without a connection does not hear of a withdrawal.
const StatusLife = 12 * time.Hour

type withdrawnRow struct {
	Index  int64     `json:"index"`
	At     time.Time `json:"at"`
	Stated time.Time `json:"stated,omitzero"` // of a suspension: when it says that it begins
	Until  time.Time `json:"until,omitzero"`  // and when it ends
}

// A SignedStatusList is the list, and what it is verified with.
type SignedStatusList struct {
	Envelope  []byte // DSSE, signed by the server's own key
	PublicKey []byte // of that key, PEM
	List      attest.StatusList
}

// statusReuse is how long a list is given out again as long as nothing else
// is withdrawn: a gate that asks often costs no signatures.
const statusReuse = 5 * time.Minute

// StatusList signs what is withdrawn now. Whoever may talk to the registry
// may have it: it names digests and nothing else.
func (r *Registry) StatusList(ctx context.Context, actor access.Actor) (SignedStatusList, error) {
	if actor.ID == "" {
		return SignedStatusList{}, fmt.Errorf("%w to read the status list", access.ErrUnauthenticated)
	}
	l, err := r.withdrawn(ctx)
	if err != nil {
		return SignedStatusList{}, err
	}
	if len(l.Withdrawn) > attest.MaxStatusEntries {
		// One that left something out would allow it.
		return SignedStatusList{}, fmt.Errorf("more than %d things are withdrawn: a status list cannot name them all", attest.MaxStatusEntries)
	}
	r.status.Lock()
	defer r.status.Unlock()
	last := r.status.last
	if age := l.Validity.NotBefore.Sub(last.List.Validity.NotBefore); age >= 0 && age < statusReuse && slices.Equal(l.Withdrawn, last.List.Withdrawn) {
		return last, nil
	}
	k, err := verify.NewKey(r.identity.Status)
	if err != nil {
		return SignedStatusList{}, err
	}
	envelope, err := verify.SignStatusList(k, l)
	if err != nil {
		return SignedStatusList{}, err
	}
	r.status.last = SignedStatusList{envelope, k.PublicPEM(), l}
	return r.status.last, nil
}

// withdrawn lists what verified withdrawals take back, in all repositories.
func (r *Registry) withdrawn(ctx context.Context) (l attest.StatusList, err error) {
	now := r.clock().UTC().Truncate(time.Second)
	err = r.view(ctx, func(rd store.Reader) error {
		l = attest.StatusList{
			Version: 1, Issuer: r.identity.Log.Origin(), Validity: attest.Validity{NotBefore: now, NotAfter: now.Add(StatusLife)}, Withdrawn: []attest.StatusEntry{},
		}
		var log logRow
		if _, err := load(rd, key("log"), &log); err != nil {
			return err
		}
		l.LogSize = log.Size
		var of withdrawals
		for row, err := range rd.Scan(under("withdrawn")) {
			if err != nil {
				return err
			}
			var w withdrawnRow
			if err := decode(row, &w); err != nil {
				return err
			}
			k := parts(row.Key)
			if k[0] != of.digest || k[1] != of.repo {
				of.add(&l, r.clock())
				of = withdrawals{digest: k[0], repo: k[1]}
			}
			of.rows = append(of.rows, w)
		}
		of.add(&l, r.clock())
		return nil
	})
	slices.SortFunc(l.Withdrawn, func(a, b attest.StatusEntry) int {
		switch {
		case a.Digest < b.Digest:
			return -1
		case a.Digest > b.Digest:
			return 1
		}
		return 0
	})
	return l, err
}

// withdrawals are those of one thing in one repository: a suspension is lifted
// where it was stated, and by nobody who may only speak elsewhere.
type withdrawals struct {
	digest, repo string
	rows         []withdrawnRow
}

// add enters what holds of them into a list, whose last entry may be of the
// same thing: then what holds longer stays, and the earlier beginning.
func (ws withdrawals) add(l *attest.StatusList, now time.Time) {
	stated := make([]attest.Withdrawal, len(ws.rows))
	for i, w := range ws.rows {
		stated[i] = attest.Withdrawal{WithdrawnAt: w.Stated, Until: w.Until}
	}
	i := attest.InForce(stated, now)
	if i < 0 {
		return
	}
	e := attest.StatusEntry{Digest: ws.digest, Since: ws.rows[i].At, Until: ws.rows[i].Until}
	for _, w := range ws.rows {
		if w.Until.Equal(e.Until) && w.At.Before(e.Since) {
			e.Since = w.At
		}
	}
	n := len(l.Withdrawn)
	if n == 0 || l.Withdrawn[n-1].Digest != ws.digest {
		l.Withdrawn = append(l.Withdrawn, e)
		return
	}
	last := &l.Withdrawn[n-1]
	if e.Since.Before(last.Since) {
		last.Since = e.Since
	}
	if !last.Until.IsZero() && (e.Until.IsZero() || e.Until.After(last.Until)) {
		last.Until = e.Until
	}
}
