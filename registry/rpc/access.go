package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// defaultTokenTTL is how long a token is valid if nothing is said.
const defaultTokenTTL = 90 * 24 * time.Hour

// accounts is pb.AccessServiceServer.
type accounts struct {
	pb.UnsafeAccessServiceServer
	*server
}

func (s accounts) GetSelf(ctx context.Context, q *pb.GetSelfRequest) (*pb.GetSelfResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetSelfResponse, error) {
		return &pb.GetSelfResponse{Actor: actor.ID, Grants: grantsOf(actor.Grants)}, nil
	})
}

func (s accounts) CreateToken(ctx context.Context, q *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.CreateTokenResponse, error) {
		if err := required("name", q.GetName()); err != nil {
			return nil, err
		}
		ttl := defaultTokenTTL
		if q.GetTtl() != nil {
			ttl = q.GetTtl().AsDuration()
		}
		var grants []access.Grant
		for _, g := range q.GetGrants() {
			grants = append(grants, access.Grant{Role: access.Role(g.GetRole()), Repositories: g.GetRepositories()})
		}
		t, secret, err := s.Registry.CreateToken(ctx, actor, q.GetName(), grants, ttl)
		if err != nil {
			return nil, err
		}
		return &pb.CreateTokenResponse{Token: tokenOf(t), Secret: secret}, nil
	})
}

func (s accounts) ListTokens(ctx context.Context, q *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (a *pb.ListTokensResponse, err error) {
		all, err := s.Registry.Tokens(ctx, actor)
		if err != nil {
			return nil, err
		}
		a = &pb.ListTokensResponse{}
		a.Tokens, a.NextPageToken, err = page(q, all, func(t registry.Token) string { return t.ID },
			func(t registry.Token) (*pb.Token, error) { return tokenOf(t), nil })
		return a, err
	})
}

func (s accounts) RevokeToken(ctx context.Context, q *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.RevokeTokenResponse, error) {
		if err := required("id", q.GetId()); err != nil {
			return nil, err
		}
		t, err := s.Registry.RevokeToken(ctx, actor, q.GetId())
		if err != nil {
			return nil, err
		}
		return &pb.RevokeTokenResponse{Token: tokenOf(t)}, nil
	})
}

func (s accounts) EnrollPerson(ctx context.Context, q *pb.EnrollPersonRequest) (*pb.EnrollPersonResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.EnrollPersonResponse, error) {
		if err := required("id", q.GetId(), "name", q.GetName()); err != nil {
			return nil, err
		}
		p, err := s.Registry.EnrollPerson(ctx, actor, q.GetId(), q.GetName())
		if err != nil {
			return nil, err
		}
		return &pb.EnrollPersonResponse{Person: personOf(p)}, nil
	})
}

func (s accounts) GetPerson(ctx context.Context, q *pb.GetPersonRequest) (*pb.GetPersonResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetPersonResponse, error) {
		if err := required("id", q.GetId()); err != nil {
			return nil, err
		}
		p, err := s.Registry.Person(ctx, actor, q.GetId())
		if err != nil {
			return nil, err
		}
		return &pb.GetPersonResponse{Person: personOf(p)}, nil
	})
}

func (s accounts) ErasePerson(ctx context.Context, q *pb.ErasePersonRequest) (*pb.ErasePersonResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.ErasePersonResponse, error) {
		if err := required("id", q.GetId()); err != nil {
			return nil, err
		}
		p, err := s.Registry.ErasePerson(ctx, actor, q.GetId())
		if err != nil {
			return nil, err
		}
		return &pb.ErasePersonResponse{Person: personOf(p)}, nil
	})
}

func personOf(p registry.Person) *pb.Person {
	return &pb.Person{
		Id: p.ID, Name: p.Name, NameHash: p.NameHash, EnrolledAt: timestamp(p.Enrolled), ErasedAt: timestamp(p.Erased), LogIndex: p.LogIndex,
	}
}

func grantsOf(grants []access.Grant) (list []*pb.Grant) {
	for _, g := range grants {
		list = append(list, &pb.Grant{Role: string(g.Role), Repositories: g.Repositories})
	}
	return list
}

func tokenOf(t registry.Token) *pb.Token {
	a := &pb.Token{
		Id: t.ID, Name: t.Name, Grants: grantsOf(t.Grants), CreatedBy: t.By,
		CreatedAt: timestamppb.New(t.Created), ExpiresAt: timestamppb.New(t.Expires),
	}
	if !t.Revoked.IsZero() {
		a.RevokedAt = timestamppb.New(t.Revoked)
	}
	return a
}
