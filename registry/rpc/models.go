package rpc

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// models is pb.ModelServiceServer. The embedded interface makes it a compile
// error to leave one of its methods out.
type models struct {
	pb.UnsafeModelServiceServer
	*server
}

func (s models) ListRepositories(ctx context.Context, q *pb.ListRepositoriesRequest) (*pb.ListRepositoriesResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.ListRepositoriesResponse, error) {
		n, err := pageSize(q.GetPageSize())
		if err != nil {
			return nil, err
		}
		names, more, err := s.Registry.Repositories(ctx, actor, q.GetPageToken(), n)
		if err != nil {
			return nil, err
		}
		a := &pb.ListRepositoriesResponse{}
		for _, name := range names {
			a.Repositories = append(a.Repositories, &pb.Repository{Name: name})
		}
		if more {
			a.NextPageToken = names[len(names)-1]
		}
		return a, nil
	})
}

func (s models) ListVersions(ctx context.Context, q *pb.ListVersionsRequest) (*pb.ListVersionsResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (a *pb.ListVersionsResponse, err error) {
		if err := required("repository", q.GetRepository()); err != nil {
			return nil, err
		}
		all, err := s.Registry.Versions(ctx, actor, q.GetRepository())
		if err != nil {
			return nil, err
		}
		a = &pb.ListVersionsResponse{}
		a.Versions, a.NextPageToken, err = page(q, all, func(v registry.Version) string { return strconv.Itoa(v.Number) }, versionOf)
		return a, err
	})
}

func (s models) GetVersion(ctx context.Context, q *pb.GetVersionRequest) (*pb.GetVersionResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (a *pb.GetVersionResponse, err error) {
		if err := required("repository", q.GetRepository(), "reference", q.GetReference()); err != nil {
			return nil, err
		}
		v, err := s.Registry.Version(ctx, actor, q.GetRepository(), q.GetReference())
		if err != nil {
			return nil, err
		}
		a = &pb.GetVersionResponse{}
		a.Version, err = versionOf(v)
		return a, err
	})
}

func (s models) ResolveTag(ctx context.Context, q *pb.ResolveTagRequest) (*pb.ResolveTagResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (*pb.ResolveTagResponse, error) {
		if err := required("repository", q.GetRepository(), "tag", q.GetTag()); err != nil {
			return nil, err
		}
		// What a digest names does not depend on the moment, and whether it
		// was there at that moment is not what the registry would answer.
		if strings.Contains(q.GetTag(), ":") {
			return nil, fmt.Errorf("%w: tag is %q, which is a digest", errRequest, q.GetTag())
		}
		when, err := asOf("as_of", q.GetAsOf())
		if err != nil {
			return nil, err
		}
		d, err := s.Registry.Resolve(ctx, actor, q.GetRepository(), q.GetTag(), when)
		return &pb.ResolveTagResponse{Digest: string(d)}, err
	})
}

func (s models) ListTagMoves(ctx context.Context, q *pb.ListTagMovesRequest) (*pb.ListTagMovesResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (a *pb.ListTagMovesResponse, err error) {
		if err := required("repository", q.GetRepository(), "tag", q.GetTag()); err != nil {
			return nil, err
		}
		all, err := s.Registry.TagHistory(ctx, actor, q.GetRepository(), q.GetTag())
		if err != nil {
			return nil, err
		}
		a = &pb.ListTagMovesResponse{}
		a.Moves, a.NextPageToken, err = page(q, all, func(m registry.TagMove) string { return strconv.FormatInt(m.Index, 10) }, tagMoveOf)
		return a, err
	})
}

func (s models) ListFacts(ctx context.Context, q *pb.ListFactsRequest) (*pb.ListFactsResponse, error) {
	return answer(ctx, s.server, q, func(actor access.Actor) (a *pb.ListFactsResponse, err error) {
		if err := required("repository", q.GetRepository(), "reference", q.GetReference()); err != nil {
			return nil, err
		}
		subject, err := s.Registry.StatManifest(ctx, actor, q.GetRepository(), q.GetReference())
		if err != nil {
			return nil, err
		}
		all, err := s.Registry.Facts(ctx, actor, q.GetRepository(), subject.Digest)
		if err != nil {
			return nil, err
		}
		a = &pb.ListFactsResponse{Subject: string(subject.Digest)}
		a.Facts, a.NextPageToken, err = page(q, all, func(f registry.Fact) string { return string(f.Referrer) }, factOf)
		return a, err
	})
}
