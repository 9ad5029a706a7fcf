package rpc

import (
	"context"
	"strconv"

	"github.com/opencontainers/go-digest"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
)

// transparency is pb.LogServiceServer.
type transparency struct {
	pb.UnsafeLogServiceServer
	*server
}

func (s transparency) GetCheckpoint(ctx context.Context, q *pb.GetCheckpointRequest) (*pb.GetCheckpointResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetCheckpointResponse, error) {
		note, err := s.Registry.Checkpoint(ctx, actor)
		if err != nil {
			return nil, err
		}
		return &pb.GetCheckpointResponse{
			Checkpoint: string(note), Origin: s.Registry.LogOrigin(), VerifierKey: s.Registry.LogKey(),
		}, nil
	})
}

func (s transparency) GetLeaf(ctx context.Context, q *pb.GetLeafRequest) (*pb.GetLeafResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetLeafResponse, error) {
		l, err := s.Registry.Leaf(ctx, actor, q.GetIndex())
		if err != nil {
			return nil, err
		}
		return &pb.GetLeafResponse{Leaf: leafOf(l)}, nil
	})
}

func (s transparency) ListLeaves(ctx context.Context, q *pb.ListLeavesRequest) (*pb.ListLeavesResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (a *pb.ListLeavesResponse, err error) {
		if err := required("about", q.GetAbout()); err != nil {
			return nil, err
		}
		all, err := s.Registry.LeavesAbout(ctx, actor, digest.Digest(q.GetAbout()))
		if err != nil {
			return nil, err
		}
		a = &pb.ListLeavesResponse{}
		a.Leaves, a.NextPageToken, err = page(q, all, func(index int64) string { return strconv.FormatInt(index, 10) },
			func(index int64) (*pb.Leaf, error) {
				l, err := s.Registry.Leaf(ctx, actor, index)
				return leafOf(l), err
			})
		return a, err
	})
}

func (s transparency) GetInclusionProof(ctx context.Context, q *pb.GetInclusionProofRequest) (*pb.GetInclusionProofResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.GetInclusionProofResponse, error) {
		proof, err := s.Registry.InclusionProof(ctx, actor, q.GetIndex())
		if err != nil {
			return nil, err
		}
		return &pb.GetInclusionProofResponse{Proof: string(proof)}, nil
	})
}
