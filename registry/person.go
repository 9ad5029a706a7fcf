package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"time"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

// A Person signs approvals. Statements and the log know the opaque id and a
// salted hash of the name; the name itself is in a table from which it can be
// erased, and once it is, nobody can tell from the hash whose it was.
type Person struct {
	ID       string
	Name     string // "" if it was erased, or if the caller may not see it
	NameHash string // of the newest name
	Enrolled time.Time
	Erased   time.Time // zero if the name is there
	LogIndex int64
}

type personRow struct {
	Name   string    `json:"name,omitempty"`
	Salt   []byte    `json:"salt,omitempty"`
	Hash   string    `json:"hash"`
	At     time.Time `json:"at"`
	Erased time.Time `json:"erased,omitzero"`
}

var personRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// EnrollPerson records the name of a person. A name that changes is recorded
// anew; what was signed under the one before keeps its hash (21 CFR 11.10(e):
// "record changes shall not obscure previously recorded information").
func (r *Registry) EnrollPerson(ctx context.Context, actor access.Actor, id, name string) (p Person, err error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Person{}, err
	}
	if !personRE.MatchString(id) {
		return Person{}, fmt.Errorf("%w: %.100q is no id of a person: use up to 64 letters, digits, . _ and -, and no name", ErrDocumentInvalid, id)
	}
	if name == "" || len(name) > 200 {
		return Person{}, fmt.Errorf("%w: a person has a name of up to 200 bytes", ErrDocumentInvalid)
	}
	row := personRow{Name: name, Salt: make([]byte, 16)}
	rand.Read(row.Salt)
	sum := sha256.Sum256(append(append([]byte{}, row.Salt...), name...))
	row.Hash = hex.EncodeToString(sum[:])
	err = r.submit(ctx, func(tx *txn) error {
		row.At = tx.now
		tx.put(key("person", id, number(tx.index)), row)
		tx.emit(Event{Kind: EventPersonEnroll, Actor: actor.ID, Request: actor.RequestID, Person: id, ReasonHash: row.Hash})
		p = Person{ID: id, Name: name, NameHash: row.Hash, Enrolled: tx.now, LogIndex: tx.index}
		return nil
	})
	return p, err
}

// Person returns a person. The name is for auditors of the whole registry;
// others get the hash, which they sign.
func (r *Registry) Person(ctx context.Context, actor access.Actor, id string) (p Person, err error) {
	if actor.ID == "" {
		return Person{}, fmt.Errorf("%w to look up a person", access.ErrUnauthenticated)
	}
	err = r.view(ctx, func(rd store.Reader) error {
		rg := under("person", id)
		rg.Reverse = true
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			var n personRow
			if err := decode(row, &n); err != nil {
				return err
			}
			p = Person{ID: id, Name: n.Name, NameHash: n.Hash, Enrolled: n.At, Erased: n.Erased, LogIndex: lastNumber(row.Key)}
			return nil
		}
		return fmt.Errorf("%w: nobody is enrolled as %.100q", ErrUnknown, id)
	})
	if actor.Authorize(access.Audit, "") != nil {
		p.Name = ""
	}
	return p, err
}

// ErasePerson forgets the names of a person, and the salts without which
// their hashes tell nothing.
func (r *Registry) ErasePerson(ctx context.Context, actor access.Actor, id string) (p Person, err error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Person{}, err
	}
	err = r.submit(ctx, func(tx *txn) error {
		found, left := false, false
		for row, err := range tx.Scan(under("person", id)) {
			if err != nil {
				return err
			}
			var n personRow
			if err := decode(row, &n); err != nil {
				return err
			}
			found = true
			if n.Erased.IsZero() {
				left = true
				n.Name, n.Salt, n.Erased = "", nil, tx.now
				tx.put(bytes.Clone(row.Key), n)
			}
			p = Person{ID: id, NameHash: n.Hash, Enrolled: n.At, Erased: n.Erased, LogIndex: lastNumber(row.Key)}
		}
		if !found {
			return fmt.Errorf("%w: nobody is enrolled as %.100q", ErrUnknown, id)
		}
		if left {
			tx.emit(Event{Kind: EventPersonErase, Actor: actor.ID, Request: actor.RequestID, Person: id})
		}
		return nil
	})
	return p, err
}
