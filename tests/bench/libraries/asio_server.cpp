// The echo server over Asio, on one thread.
//
// asio_server PORT

#define ASIO_STANDALONE
#include <asio.hpp>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

using asio::ip::tcp;

class Session : public std::enable_shared_from_this<Session> {
public:
    explicit Session(tcp::socket socket) : socket_(std::move(socket)), in_(4096) {}

    void read() {
        auto room = asio::buffer(in_.data() + len_, in_.size() - len_);
        socket_.async_read_some(room, [self = shared_from_this()](auto error, size_t len) {
            if (!error) {
                self->len_ += len;
                self->handle();
            }
        });
    }

private:
    // Answers each whole message; all answers leave in one write.
    void handle() {
        size_t at = 0, needed = 0;
        out_.clear();
        while (len_ - at >= 2) {
            size_t frame = 2 + (static_cast<unsigned char>(in_[at]) << 8 |
                                static_cast<unsigned char>(in_[at + 1]));
            if (len_ - at < frame) {
                needed = frame;
                break;
            }
            out_.insert(out_.end(), in_.begin() + at, in_.begin() + at + frame);
            at += frame;
        }
        len_ -= at;
        std::memmove(in_.data(), in_.data() + at, len_);
        if (needed > in_.size())
            in_.resize(needed);
        if (out_.empty()) {
            read();
            return;
        }
        asio::async_write(socket_, asio::buffer(out_), [self = shared_from_this()](auto error, size_t) {
            if (!error)
                self->read();
        });
    }

    tcp::socket socket_;
    std::vector<char> in_, out_;
    size_t len_ = 0;
};

static void accept(tcp::acceptor &acceptor) {
    acceptor.async_accept([&acceptor](auto error, tcp::socket socket) {
        if (!error) {
            socket.set_option(tcp::no_delay(true));
            std::make_shared<Session>(std::move(socket))->read();
        }
        accept(acceptor);
    });
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    // One thread: no locks.
    asio::io_context context(1);
    tcp::endpoint address(asio::ip::address_v4::loopback(), std::atoi(argv[1]));
    tcp::acceptor acceptor(context);
    acceptor.open(tcp::v4());
    acceptor.set_option(tcp::acceptor::reuse_address(true));
    acceptor.bind(address);
    acceptor.listen(4096);
    accept(acceptor);
    context.run();
}
