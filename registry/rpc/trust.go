package rpc

import (
	"context"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
)

// trust is pb.TrustServiceServer.
type trust struct {
	pb.UnsafeTrustServiceServer
	*server
}

func (s trust) GetTrust(ctx context.Context, q *pb.GetTrustRequest) (*pb.GetTrustResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetTrustResponse, error) {
		d, err := s.Registry.Trust(ctx, actor)
		if err != nil {
			return nil, err
		}
		return &pb.GetTrustResponse{Trust: documentOf(d)}, nil
	})
}

func (s trust) SetTrust(ctx context.Context, q *pb.SetTrustRequest) (*pb.SetTrustResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.SetTrustResponse, error) {
		if err := required("yaml", q.GetYaml()); err != nil {
			return nil, err
		}
		d, err := s.Registry.SetTrust(ctx, actor, []byte(q.GetYaml()))
		if err != nil {
			return nil, err
		}
		return &pb.SetTrustResponse{Trust: documentOf(d)}, nil
	})
}

func (s trust) GetPolicy(ctx context.Context, q *pb.GetPolicyRequest) (*pb.GetPolicyResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetPolicyResponse, error) {
		d, err := s.Registry.Policy(ctx, actor)
		if err != nil {
			return nil, err
		}
		return &pb.GetPolicyResponse{Policy: documentOf(d)}, nil
	})
}

func (s trust) SetPolicy(ctx context.Context, q *pb.SetPolicyRequest) (*pb.SetPolicyResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.SetPolicyResponse, error) {
		if err := required("yaml", q.GetYaml()); err != nil {
			return nil, err
		}
		d, err := s.Registry.SetPolicy(ctx, actor, []byte(q.GetYaml()))
		if err != nil {
			return nil, err
		}
		return &pb.SetPolicyResponse{Policy: documentOf(d)}, nil
	})
}

func (s trust) TestTrust(ctx context.Context, q *pb.TestTrustRequest) (*pb.TestTrustResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.TestTrustResponse, error) {
		if err := required("yaml", q.GetYaml()); err != nil {
			return nil, err
		}
		rv, err := s.Registry.TestTrust(ctx, actor, []byte(q.GetYaml()))
		if err != nil {
			return nil, err
		}
		return &pb.TestTrustResponse{Review: reviewOf(rv)}, nil
	})
}

func (s trust) GetTrustReview(ctx context.Context, q *pb.GetTrustReviewRequest) (*pb.GetTrustReviewResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetTrustReviewResponse, error) {
		rv, err := s.Registry.TrustReview(ctx, actor)
		if err != nil {
			return nil, err
		}
		return &pb.GetTrustReviewResponse{Review: reviewOf(rv)}, nil
	})
}

func (s trust) GetStatusList(ctx context.Context, q *pb.GetStatusListRequest) (*pb.GetStatusListResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetStatusListResponse, error) {
		l, err := s.Registry.StatusList(ctx, actor)
		if err != nil {
			return nil, err
		}
		return &pb.GetStatusListResponse{
			Envelope: l.Envelope, PublicKey: string(l.PublicKey), Entries: int64(len(l.List.Withdrawn)),
			IssuedAt: timestamp(l.List.Validity.NotBefore), ExpiresAt: timestamp(l.List.Validity.NotAfter),
		}, nil
	})
}
