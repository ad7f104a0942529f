// The echo server over Asio, on one thread.
//
// asio_server PORT

#define ASIO_STANDALONE
#include <asio.hpp>
#include <cstdlib>
#include <memory>
#include <vector>

using asio::ip::tcp;

// Every read goes here; a session keeps only what it has of a message that has not arrived whole.
static std::vector<char> input(1 << 18);

class Session : public std::enable_shared_from_this<Session> {
public:
    explicit Session(tcp::socket socket) : socket_(std::move(socket)) { socket_.non_blocking(true); }

    void wait() {
        socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](auto error) {
            if (!error)
                self->read();
        });
    }

private:
    void read() {
        asio::error_code error;
        size_t len = socket_.read_some(asio::buffer(input), error);
        if (error == asio::error::would_block)
            return wait();
        if (error)
            return;
        const char *bytes = input.data();
        if (!begun_.empty()) {
            begun_.insert(begun_.end(), input.data(), input.data() + len);
            bytes = begun_.data();
            len = begun_.size();
        }
        size_t whole = answer(bytes, len);
        begun_ = std::vector<char>(bytes + whole, bytes + len);
        if (out_.empty())
            return wait();
        asio::async_write(socket_, asio::buffer(out_), [self = shared_from_this()](auto error, size_t) {
            self->out_ = {};
            if (!error)
                self->wait();
        });
    }

    // Answers each whole message, all of them in one write; returns how many bytes they are.
    size_t answer(const char *bytes, size_t len) {
        size_t at = 0;
        while (len - at >= 2) {
            size_t size = 2 + (static_cast<unsigned char>(bytes[at]) << 8 |
                               static_cast<unsigned char>(bytes[at + 1]));
            if (len - at < size)
                break;
            out_.insert(out_.end(), bytes + at, bytes + at + size);
            at += size;
        }
        return at;
    }

    tcp::socket socket_;
    std::vector<char> begun_, out_;
};

static void accept(tcp::acceptor &acceptor) {
    acceptor.async_accept([&acceptor](auto error, tcp::socket socket) {
        if (error)
            std::exit(1);
        socket.set_option(tcp::no_delay(true));
        std::make_shared<Session>(std::move(socket))->wait();
        accept(acceptor);
    });
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    // One thread: without locks.
    asio::io_context context(ASIO_CONCURRENCY_HINT_UNSAFE);
    tcp::endpoint address(asio::ip::address_v4::loopback(), std::atoi(argv[1]));
    tcp::acceptor acceptor(context);
    acceptor.open(tcp::v4());
    acceptor.set_option(tcp::acceptor::reuse_address(true));
    acceptor.bind(address);
    acceptor.listen(4096);
    accept(acceptor);
    context.run();
}
