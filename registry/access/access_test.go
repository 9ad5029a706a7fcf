package access

import (
	"errors"
	"testing"
)

func TestAuthorize(t *testing.T) {
	one := func(r Role, pattern string) Actor { return Actor{ID: "u1", Grants: []Grant{{r, pattern}}} }
	for _, tc := range []struct {
		actor  Actor
		action Action
		repo   string
		want   error
	}{
		{Actor{}, Pull, "a", ErrUnauthenticated},
		{Anonymous(false), Pull, "a", ErrUnauthenticated},
		{Anonymous(true), Operate, "", nil},
		{System(), Push, "a/b", nil},
		{one(Reader, "**"), Pull, "a/b/c", nil},
		{one(Reader, "**"), Push, "a/b/c", ErrDenied},
		{one(Reader, "**"), Audit, "", ErrDenied},
		{one(Pusher, "credit/*"), Push, "credit/scorer", nil},
		{one(Pusher, "credit/*"), Push, "credit/scorer/x", ErrDenied},
		{one(Pusher, "credit/**"), Push, "credit/scorer/x", nil},
		{one(Pusher, "credit/**"), Push, "creditor", ErrDenied},
		{one(Pusher, "credit/**"), Push, "credit", ErrDenied},
		{one(Pusher, "credit/**"), Delete, "credit/scorer", ErrDenied},
		{one(Auditor, "**"), Audit, "", nil},
		{one(Auditor, "**"), Push, "a", ErrDenied},
		{one("root", "**"), Pull, "a", ErrDenied},
		{one(Operator, "[bad"), Pull, "[bad", ErrDenied},
		{Actor{ID: "u1"}, Pull, "a", ErrDenied},
	} {
		if err := tc.actor.Authorize(tc.action, tc.repo); !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
			t.Errorf("%+v %s %q: %v, want %v", tc.actor, tc.action, tc.repo, err, tc.want)
		}
	}
}
