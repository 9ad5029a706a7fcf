// Package access says who is asking and what they may do. Authority sits in
// the heart: every method of the registry takes an [Actor] and asks it; the
// transports only find out who is asking.
package access

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

var (
	// ErrDenied says that the actor is known and may not do it.
	ErrDenied = errors.New("denied")

	// ErrUnauthenticated says that nobody is logged in, and that somebody
	// would have to be.
	ErrUnauthenticated = errors.New("authentication required")
)

// An Action is something that can be done to a repository, or to the registry
// as a whole (repository "").
type Action string

const (
	Pull    Action = "pull"
	Push    Action = "push"
	Delete  Action = "delete"
	Audit   Action = "audit"   // read the log, deployments and decisions
	Decide  Action = "decide"  // ask the gate, which records the answer
	Operate Action = "operate" // change trust and policy
)

// A Role is a set of actions.
type Role string

const (
	Reader   Role = "reader"
	Pusher   Role = "pusher"
	Auditor  Role = "auditor"
	Operator Role = "operator"
)

// may is the whole table: what is not in it is denied.
var may = map[Role][]Action{
	Reader:   {Pull},
	Pusher:   {Pull, Push, Decide},
	Auditor:  {Pull, Audit, Decide},
	Operator: {Pull, Push, Delete, Audit, Decide, Operate},
}

// A Grant gives a role in the repositories that match a pattern: "credit/*"
// is every repository one level below credit, "credit/**" every one below it,
// "**" all of them and the registry as a whole.
type Grant struct {
	Role         Role   `json:"role" yaml:"role"`
	Repositories string `json:"repositories" yaml:"repositories"`
}

// Check returns an error unless the grant has a role and a pattern that are
// known.
func (g Grant) Check() error {
	if _, ok := may[g.Role]; !ok {
		return fmt.Errorf("role %q is unknown: use reader, pusher, auditor or operator", g.Role)
	}
	if _, err := path.Match(strings.TrimSuffix(g.Repositories, "/**"), ""); err != nil || g.Repositories == "" {
		return fmt.Errorf("%q is no pattern of repositories: write credit/*, credit/** or **", g.Repositories)
	}
	return nil
}

// An Actor is who is asking. The zero Actor may do nothing.
type Actor struct {
	// ID is opaque: it goes into the log, which forgets nothing, so it must
	// not be a name or an address.
	ID string

	Grants []Grant

	// RequestID ties log leaves to a request.
	RequestID string
}

// Anonymous is somebody who has not logged in. On loopback that is whoever
// uses this machine, and may do everything; elsewhere it is nobody.
func Anonymous(loopback bool) Actor {
	if !loopback {
		return Actor{}
	}
	return Actor{ID: "anonymous", Grants: []Grant{{Operator, "**"}}}
}

// System is the registry itself, for work nobody asked for.
func System() Actor {
	return Actor{ID: "system", Grants: []Grant{{Operator, "**"}}}
}

// Authorize returns nil if a may do the action to the repository, else an
// error that is ErrUnauthenticated or ErrDenied.
func (a Actor) Authorize(action Action, repository string) error {
	for _, g := range a.Grants {
		if !Match(g.Repositories, repository) {
			continue
		}
		for _, allowed := range may[g.Role] {
			if allowed == action {
				return nil
			}
		}
	}
	what := "the registry"
	if repository != "" {
		what = repository
	}
	if a.ID == "" {
		return fmt.Errorf("%w to %s %s", ErrUnauthenticated, action, what)
	}
	return fmt.Errorf("%w: %s may not %s %s", ErrDenied, a.ID, action, what)
}

// Match reports whether a repository matches a pattern of the form that
// [Grant] describes. A malformed pattern matches nothing.
func Match(pattern, repository string) bool {
	if pattern == "**" {
		return true
	}
	if prefix, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(repository, prefix+"/")
	}
	ok, err := path.Match(pattern, repository)
	return ok && err == nil
}
